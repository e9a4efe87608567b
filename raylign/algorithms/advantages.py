"""Rewards and advantages of tokens: KL-shaped rewards, generalised advantage estimation, whitening.

All tensors here are `[N, L]` in the alignment of `raylign.types` and carry no gradient. A completion mask may have
holes (tool output between two turns); the tokens in a hole are not actions, so they get no reward and no step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raylign.algorithms.kl import KLEstimator, kl_estimate


class Advantages(NamedTuple):
    """Advantages of the tokens and the returns that a critic learns, both in units of the reward."""

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
    """Return token rewards: the KL penalty on each token, plus the score on the last (Ziegler et al. 2019, eq. 2).

        r_t = -kl_coef * KL_t + [t is the last completion token] * score

    scores `[N]`, logprobs and ref_logprobs `[N, L]` in nats, completion_mask `[N, L]` bool -> rewards `[N, L]` in units
    of the score, 0 outside the mask. A row without completion tokens gets no reward at all. Values outside the mask
    are not read. The caller must first leave out rows with an invalid score.

    Example: mask [F, T, T, F], score 1, kl_coef 0.1, k1 estimates 2 and -1 give rewards [0, -0.2, 0.1 + 1, 0].
    """
    kl = kl_estimate(logprobs, ref_logprobs, estimator)
    rewards = torch.where(completion_mask, -kl_coef * kl, 0.0)  # not a product: nan * 0 is nan
    # Counted from the right, the last completion token is the first True: the only one whose running count is 1.
    from_right = completion_mask.flip(1).cumsum(1).flip(1)
    is_last = completion_mask & (from_right == 1)
    return rewards + torch.where(is_last, scores.unsqueeze(1), 0.0)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, completion_mask: Tensor, gamma: float, lam: float) -> Advantages:
    """Estimate advantages of the completion tokens by GAE (Schulman et al. 2016, eqs. 11-16).

        delta_t = r_t + gamma * V_next(t) - V_t
        A_t     = delta_t + gamma * lam * A_next(t)
        R_t     = A_t + V_t

    next(t) is the next True position of the row, so holes are skipped; past the last one V and A are 0 (also where a
    completion was cut by length). rewards and values `[N, L]`, completion_mask `[N, L]` bool -> both `[N, L]`, in units
    of the reward. A row without completion tokens gives zeros.

    Example: mask [T, F, T], rewards [0, 9, 1], values [0.5, 9, 0.25] and gamma = lam = 1 give advantages
    [0.5, 0, 0.75] and returns [1, 0, 1].
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
    """Normalise the elements under the mask, `(x - mean) / sqrt(var + eps)`; all others become 0.

    x `[N, L]`, mask `[N, L]` bool -> `[N, L]`. The variance is the population's (divided by n, not n - 1), so a single
    element gives 0 and not nan. `shift_mean=False` adds the mean back: unit variance around the old mean.
    """
    picked = x[mask]
    mean = picked.mean()
    variance = (picked - mean).square().mean()
    white = (x - mean) * torch.rsqrt(variance + eps)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)
