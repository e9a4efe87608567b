"""Penalties on a score for the length of its completion, before any KL penalty."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def shape_scores(
    scores: Tensor,
    lengths: Tensor,
    finished: Tensor,
    *,
    missing_eos_penalty: float,
    length_penalty: float,
    overlong_buffer: int | None,
    overlong_penalty: float,
    max_tokens: int,
) -> Tensor:
    """Subtract the length penalties from the scores.

        score - missing_eos_penalty * [not finished] - length_penalty * length - overlong
        overlong = overlong_penalty * clip((length - (max_tokens - overlong_buffer)) / overlong_buffer, 0, 1)

    `overlong` is the soft overlong punishment of DAPO (Yu et al. 2025, eq. 13): 0 up to `overlong_buffer` tokens before
    the limit, then growing linearly to the full penalty at the limit. overlong_buffer None turns it off.

    scores `[N]`, lengths `[N]` in completion tokens, finished `[N]` bool (False where the completion was cut) -> `[N]`
    in units of the score.

    Example: max_tokens 10, buffer 4, penalty 1 and lengths 6, 7, 10 give overlong 0, 0.25, 1.

    Raises:
        ValueError: shapes differ, or the buffer is longer than max_tokens, so that even the shortest completion would
            be penalised.
    """
    if not scores.shape == lengths.shape == finished.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (scores, lengths, finished))
        raise ValueError(f"scores, lengths and finished have shapes {shapes}; they must agree")
    shaped = scores - missing_eos_penalty * (~finished).to(scores.dtype) - length_penalty * lengths.to(scores.dtype)
    if overlong_buffer is None:
        return shaped
    if overlong_buffer > max_tokens:
        raise ValueError(f"overlong_buffer is {overlong_buffer}, longer than max_tokens {max_tokens}; lower it")
    over = (lengths.to(scores.dtype) - (max_tokens - overlong_buffer)) / overlong_buffer
    return shaped - overlong_penalty * over.clamp(0.0, 1.0)
