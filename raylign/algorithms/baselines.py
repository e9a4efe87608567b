"""Advantages without a critic: the other samples of a prompt, or the rest of the round, are the baseline.

Rows belong to groups, one for each prompt, numbered by any integers; the rows of a group may lie anywhere in the batch,
and groups may differ in size. Invalid rows (they could not be scored) are ignored and get 0; their values are not
read. Sums are in float64, so that the order of the rows does not change the result.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from raylign.algorithms.advantages import gae

_STD_EPS = 1e-4


@torch.no_grad()
def group_advantages(rewards: Tensor, groups: Tensor, valid: Tensor, scale: Literal["group_std", "none"]) -> Tensor:
    """Return GRPO's advantages: each reward against the mean of its group (Shao et al. 2024, section 4.1.2).

        A_i = (r_i - mean(group)) / (std(group) + 1e-4)       scale "group_std"
        A_i =  r_i - mean(group)                              scale "none": Dr. GRPO (Liu et al. 2025)

    rewards `[N]`, groups `[N]` int64, valid `[N]` bool -> `[N]`, in standard deviations or in units of the reward. std
    is the sample's (divided by n - 1), and 1e-4 is added to it, as in TRL; verl and OpenRLHF use the same std and add
    1e-6 and 1e-9; the paper specifies neither. Groups with fewer than two valid rows get 0.

    Example: rewards 1, 2, 3 of one group have std 1 and advantages -0.9999, 0, 0.9999.

    Raises:
        ValueError: shapes differ.
    """
    index, size, centred = _centred(rewards, groups, valid)
    if scale == "group_std":
        variance = torch.zeros_like(size).index_add(0, index, centred.square()) / (size - 1).clamp_min(1)
        centred = centred / (variance.sqrt() + _STD_EPS)[index]
    return centred.to(rewards.dtype)


@torch.no_grad()
def leave_one_out_advantages(rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Return RLOO's advantages: each reward against the mean of the others in its group.

        A_i = r_i - mean(r_j, j in group, j != i) = n / (n - 1) * (r_i - mean(group))

    Kool et al. 2019; Ahmadian et al. 2024.

    rewards `[N]`, groups `[N]` int64, valid `[N]` bool -> `[N]` in units of the reward. The baseline does not depend
    on the row itself, so the gradient is unbiased. Groups with fewer than two valid rows get 0.

    Example: rewards 1, 2, 6 of one group have baselines 4, 3.5, 1.5 and advantages -3, -1.5, 4.5.

    Raises:
        ValueError: shapes differ.
    """
    index, size, centred = _centred(rewards, groups, valid)
    return (centred * (size / (size - 1).clamp_min(1))[index]).to(rewards.dtype)


@torch.no_grad()
def returns_to_go(rewards: Tensor, completion_mask: Tensor, gamma: float) -> Tensor:
    """Return the discounted sum of the rewards from each token on, as REINFORCE++ uses it (Hu et al. 2025).

        G_t = r_t + gamma * G_next(t)

    rewards `[N, L]`, completion_mask `[N, L]` bool -> `[N, L]` in units of the reward, 0 outside the mask. next(t) is
    the next True position, so holes are skipped and do not discount. This is GAE without a critic: V = 0, lambda = 1.
    The baseline of the algorithm is `advantages.whiten` over the round.

    Example: mask [T, F, T], rewards [1, 9, 4] and gamma 0.5 give [3, 0, 4].
    """
    return gae(rewards, torch.zeros_like(rewards), completion_mask, gamma, 1.0).advantages


@torch.no_grad()
def group_spread(scores: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Return a mask of the rows whose group has two different valid scores (DAPO, Yu et al. 2025, eq. 11).

    Only such groups have something to learn from.

    scores `[N]`, groups `[N]` int64, valid `[N]` bool -> `[N]` bool; an invalid row gets the value of its group.

    Raises:
        ValueError: shapes differ.
    """
    index, num_groups = _index(scores, groups, valid)
    infinite = scores.new_full((num_groups,), float("inf"))
    lowest = infinite.scatter_reduce(0, index[valid], scores[valid], "amin")
    highest = (-infinite).scatter_reduce(0, index[valid], scores[valid], "amax")
    return (highest > lowest)[index]


def _centred(rewards: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's group `[N]`, each group's number of valid rows `[G]`, and the centred rewards `[N]`.

    A centred reward is the reward minus its group's mean; 0 in invalid rows.
    """
    index, num_groups = _index(rewards, groups, valid)
    exact = torch.where(valid, rewards.double(), 0.0)
    none = exact.new_zeros(num_groups)
    size = none.index_add(0, index, valid.double())
    mean = none.index_add(0, index, exact) / size.clamp_min(1)
    return index, size, torch.where(valid, exact - mean[index], 0.0)


def _index(values: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, int]:
    if not values.shape == groups.shape == valid.shape or values.dim() != 1:
        shapes = ", ".join(str(list(x.shape)) for x in (values, groups, valid))
        raise ValueError(f"values, groups and valid have shapes {shapes}; each must be [N]")
    unique_groups, index = groups.unique(return_inverse=True)
    return index, len(unique_groups)
