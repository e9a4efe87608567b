"""The critic's regression loss of PPO."""

from __future__ import annotations

import torch
from torch import Tensor

from raylign.algorithms.loss import LossSum, check_inputs


def ppo_value_loss(*, values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> LossSum:
    """Compute half the squared error of values, with their change clipped, summed over tokens.

        clipped = old + clip(V - old, -clip_range, clip_range)
        L       = 0.5 * sum_t max((V_t - R_t)^2, (clipped_t - R_t)^2)

    The clip comes from the OpenAI baselines PPO2 code, and Ziegler et al. (2019) brought it to RLHF; the PPO paper has
    the plain error, which is `clip_range=None`. All tensors are `[M]` over completion tokens, in units of the reward;
    values carry gradient.

    Metrics, sums over tokens:
        value/clip_fraction  tokens where the clipped error is larger, so that the gradient is 0
        value/error          squared error of the new values
        value/mean           the new values

    Raises:
        ValueError: shapes differ or a tensor is of half precision.
    """
    check_inputs(values=values, old_values=old_values, returns=returns)
    error = (values - returns).square()
    worst = error
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        worst = torch.maximum(error, (clipped - returns).square())

    metrics = {
        "value/clip_fraction": (worst > error).to(error.dtype).sum(),
        "value/error": error.detach().sum(),
        "value/mean": values.detach().sum(),
    }
    return LossSum(0.5 * worst.sum(), metrics)
