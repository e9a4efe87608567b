"""Importance weights for samples that the engine drew with other probabilities than the learner computes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from raylign.algorithms.kl import MAX_LOG_RATIO


@torch.no_grad()
def importance_weights(
    learner_logprobs: Tensor,
    engine_logprobs: Tensor,
    completion_mask: Tensor,
    mode: Literal["truncate", "mask"],
    cap: float,
    level: Literal["token", "sequence"],
) -> Tensor:
    """Return bounded importance weights of each token or of each completion (Yao et al. 2025; Ionides 2008).

        ratio = exp(learner - engine)            level "token"
        ratio = exp(sum_t (learner - engine))    level "sequence": one ratio for all tokens of the row
        w     = min(ratio, cap)                                    mode "truncate"
        w     = ratio if 1 / cap <= ratio <= cap, else 0           mode "mask"

    learner_logprobs and engine_logprobs `[N, L]` in nats, of the sampled tokens under the weights before the update;
    completion_mask `[N, L]` bool; cap > 1 -> `[N, L]`, without unit, 0 outside the mask. The log ratio is cut at +-20.
    Values outside the mask are not read. The ratio of a sequence is a product: with hundreds of tokens, rounding alone
    moves it far from 1, and "mask" then drops most rows.

    Raises:
        ValueError: shapes differ (they would broadcast).
    """
    if not learner_logprobs.shape == engine_logprobs.shape == completion_mask.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (learner_logprobs, engine_logprobs, completion_mask))
        raise ValueError(f"learner_logprobs, engine_logprobs and completion_mask have shapes {shapes}; they must agree")
    log_ratio = torch.where(completion_mask, learner_logprobs - engine_logprobs, 0.0)
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if mode == "truncate":
        return torch.where(completion_mask, ratio.clamp(max=cap), 0.0)
    return torch.where(completion_mask & (log_ratio.abs() <= math.log(cap)), ratio, 0.0)
