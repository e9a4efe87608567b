"""Aggregation of token losses into one number: the weight of each token, and the divisor of the weighted sum.

These are two functions because a micro-batch only sums: `sum(token_weights * loss)` over all micro-batches and ranks
is divided once, by the `normaliser` of the whole optimizer step. Any split of the rows gives the same step.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Aggregate = Literal["token_mean", "sequence_mean", "max_tokens"]


def token_weights(completion_mask: Tensor, aggregate: Aggregate) -> Tensor:
    """Return the weight of every token in the sum of token losses.

        token_mean, max_tokens    1
        sequence_mean             1 / completion tokens of its row

    completion_mask `[N, L]` bool -> `[N, L]` float32, 0 outside the mask.
    """
    weights = completion_mask.float()
    if aggregate == "sequence_mean":
        return weights / weights.sum(1, keepdim=True).clamp_min(1.0)
    return weights


def normaliser(completion_mask: Tensor, aggregate: Aggregate, max_tokens: int) -> float:
    """Return the number that divides the weighted sum of token losses over an optimizer step.

        token_mean       completion tokens: the mean over all tokens (DAPO, Yu et al. 2025, eq. 12)
        sequence_mean    rows: the mean over completions of their token means (GRPO, Shao et al. 2024, eq. 3)
        max_tokens       rows * max_tokens: a constant for each token (Dr. GRPO, Liu et al. 2025)

    completion_mask `[N, L]` bool of all rows of the step; max_tokens is the longest completion that can be sampled.
    Rows without a completion token do not count. The result is 0 if no row has one: there is no step to take.
    """
    if aggregate == "token_mean":
        return float(completion_mask.sum())
    num_rows = float(completion_mask.any(1).sum())
    return num_rows * max_tokens if aggregate == "max_tokens" else num_rows
