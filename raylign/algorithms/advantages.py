"""From scores to advantages: KL-shaped rewards, generalised advantage estimation, whitening.

Everything here is `[N, L]` in the alignment of `raylign.types` and without gradient. A completion mask may have
holes (tool output between two turns); the tokens in a hole are not actions, so they get no reward and no step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raylign.algorithms.kl import KLEstimator, kl_estimate


class Advantages(NamedTuple):
    advantages: Tensor  # [N, L], 0 outside the mask
    returns: Tensor  # [N, L], 0 outside the mask


@torch.no_grad()
def shape_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    completion_mask: Tensor,
    kl_coef: float,
    estimator: KLEstimator,
) -> Tensor:
    """Rewards of every token: the KL penalty, and the score on the last token (Ziegler et al. 2019, eq. 2).

        r_t = -kl_coef * KL_t + [t is the last completion token] * score

    scores `[N]`, logprobs and ref_logprobs `[N, L]` in nats, completion_mask `[N, L]` bool -> rewards `[N, L]` in units
    of the score, 0 outside the mask. A row without completion tokens gets no reward at all. Whatever stands outside
    the mask is not read. Rows with an invalid score must be left out before.

    Mask [F, T, T, F], score 1, coef 0.1, k1 of 2 and -1: rewards [0, -0.2, 0.1 + 1, 0].
    """
    kl = kl_estimate(logprobs, ref_logprobs, estimator)
    rewards = torch.where(completion_mask, -kl_coef * kl, 0.0)  # not a product: nan * 0 is nan
    # Counted from the right, the last completion token is the first True: the only one whose running count is 1.
    from_right = completion_mask.flip(1).cumsum(1).flip(1)
    is_last = completion_mask & (from_right == 1)
    return rewards + torch.where(is_last, scores.unsqueeze(1), 0.0)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, completion_mask: Tensor, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016, eqs. 11-16) over the completion tokens.

        delta_t = r_t + gamma * V_next(t) - V_t
        A_t     = delta_t + gamma * lam * A_next(t)
        R_t     = A_t + V_t

    next(t) is the next True position of the row, so holes are jumped over; past the last one V and A are 0 (a
    completion cut by length ends there as well). rewards and values `[N, L]`, completion_mask `[N, L]` bool. A row
    without completion tokens gives zeros.

    Mask [T, F, T], rewards [0, 9, 1], values [0.5, 9, 0.25], gamma = lam = 1: advantages [0.5, 0, 0.75], returns [1, 0, 1].
    """
    advantages = torch.zeros_like(rewards).T.contiguous()  # [L, N], a step is a row of memory
    steps = (rewards.T.contiguous(), values.T.contiguous(), completion_mask.T.contiguous())
    next_value = next_advantage = rewards.new_zeros(rewards.shape[0])
    for t in reversed(completion_mask.any(0).nonzero().flatten().tolist()):
        reward, value, is_action = (x[t] for x in steps)
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        next_advantage = torch.where(is_action, advantage, next_advantage)
        next_value = torch.where(is_action, value, next_value)
        advantages[t] = torch.where(is_action, advantage, 0.0)
    result = advantages.T.contiguous()
    return Advantages(result, torch.where(completion_mask, result + values, 0.0))


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """`(x - mean) / sqrt(var + eps)` over the True elements of the mask, 0 elsewhere.

    x `[N, L]`, mask `[N, L]` bool. The variance is the population's (divided by n, not n - 1), so one element alone
    gives 0 and not nan. `shift_mean=False` adds the mean back: unit variance around the old mean.
    """
    picked = x[mask]
    mean = picked.mean()
    variance = (picked - mean).square().mean()
    white = (x - mean) * torch.rsqrt(variance + eps)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)
