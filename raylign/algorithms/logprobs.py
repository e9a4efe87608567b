"""Log-probabilities of tokens and of sequences, computed the same way for every algorithm."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_ENTROPY_ROWS = 64  # so the scratch of the entropy stays in cache and does not add a second [M, V] to the peak
_LOG_ZERO = -1e4  # exp of it is 0 in float32, and 0 * -1e4 is 0 where 0 * -inf would be nan


class TokenLogprobs(NamedTuple):
    """Log-probabilities of M target tokens and, if asked for, the entropy of their distributions."""

    logprobs: Tensor  # [M] float32, nats
    entropy: Tensor | None  # [M] float32, nats, detached unless its gradient was asked for; None if not asked for


def token_logprobs(
    logits: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    *,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
) -> TokenLogprobs:
    """Return `log softmax(logits / temperature)[targets]`, and the entropy of that distribution.

    logits `[M, V]` of any float dtype, row m predicts targets[m]; targets `[M]` int64 -> both `[M]` float32, in nats.
    The computation is in float32 for any input, because the rounding of bfloat16 logprobs exceeds what a PPO step
    changes; the gradient has the dtype of the logits. Masked logits may be -inf. With `entropy_gradient` the entropy
    carries its gradient, which an entropy bonus needs; otherwise it is only a metric.

    log_softmax + gather is the fastest form. Measured forward + backward with M = 2000, V = 4096 on one core: 12 ms;
    logsumexp - gather takes 34 ms; an autograd function that keeps only the logits and recomputes the softmax in chunks
    takes 17 ms. The entropy adds 9 ms.
    """
    scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
    all_logprobs = torch.log_softmax(scaled, dim=-1)
    logprobs = all_logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if not with_entropy:
        return TokenLogprobs(logprobs, None)
    return TokenLogprobs(logprobs, _Entropy.apply(all_logprobs if entropy_gradient else all_logprobs.detach()))


class _Entropy(torch.autograd.Function):
    """Entropy `H = -sum_v p_v log p_v` with `p = exp(all_logprobs)`; all_logprobs `[M, V]` -> `[M]`, in nats.

    Its gradient is written by hand because autograd would keep two more `[M, V]` until the backward pass; this keeps
    only the logprobs, which log_softmax keeps anyway.
    """

    @staticmethod
    def forward(ctx: Any, all_logprobs: Tensor) -> Tensor:
        ctx.save_for_backward(all_logprobs)
        parts = all_logprobs.split(_ENTROPY_ROWS)
        return torch.cat([-part.exp().mul_(part.clamp_min(_LOG_ZERO)).sum(-1) for part in parts])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (all_logprobs,) = ctx.saved_tensors
        grad = torch.empty_like(all_logprobs)  # dH / dlog p_v = -p_v (log p_v + 1)
        parts = (x.split(_ENTROPY_ROWS) for x in (all_logprobs, grads[0].unsqueeze(-1), grad))
        for part, weight, out in zip(*parts, strict=True):
            torch.mul(part.exp().mul_(part.clamp_min(_LOG_ZERO).add_(1.0)), -weight, out=out)
        return grad


def sequence_sums(values: Tensor, row_of_token: Tensor, num_rows: int) -> Tensor:
    """Sum per-token values over each sequence: `log p(y|x) = sum_t log p(y_t | x, y_<t)`.

    values `[M]`, row_of_token `[M]` int64 in `[0, num_rows)` -> `[num_rows]`. A row without tokens gives 0.

    >>> sequence_sums(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0, 0, 2]), 3)
    tensor([-3.,  0., -4.])
    """
    return values.new_zeros(num_rows).index_add(0, row_of_token, values)
