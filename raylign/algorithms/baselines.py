"""Advantages without a critic: the other samples of a prompt, or the rest of the round, are the baseline.

Rows belong to groups, one for each prompt, named by any integers; the rows of a group may lie anywhere in the batch,
and groups may differ in size. Rows that are not valid (they could not be scored) count for nothing and get 0; what
stands in them is not read. Sums are in float64, so that the order of the rows does not show.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from raylign.algorithms.advantages import gae

_STD_EPS = 1e-4


@torch.no_grad()
def group_advantages(rewards: Tensor, groups: Tensor, valid: Tensor, scale: Literal["group_std", "none"]) -> Tensor:
    """GRPO (Shao et al. 2024, section 4.1.2): the reward against the mean of its group, in units of its spread.

        A_i = (r_i - mean(group)) / (std(group) + 1e-4)       scale "group_std"
        A_i =  r_i - mean(group)                              scale "none": Dr. GRPO (Liu et al. 2025)

    rewards `[N]`, groups `[N]` int64, valid `[N]` bool -> `[N]`, in standard deviations or in units of the reward. std
    is that of a sample (divided by n - 1) and 1e-4 is added to it, as in TRL; verl and OpenRLHF have the same
    std and add 1e-6 and 1e-9; the paper says neither. Groups with fewer than two valid rows get 0.

    Rewards 1, 2, 3 of one group: std 1, advantages -0.9999, 0, 0.9999.

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
    """RLOO (Kool et al. 2019; Ahmadian et al. 2024): the reward against the mean of the others of its group.

        A_i = r_i - mean(r_j, j in group, j != i) = n / (n - 1) * (r_i - mean(group))

    rewards `[N]`, groups `[N]` int64, valid `[N]` bool -> `[N]` in units of the reward. The baseline does not depend
    on the row itself, so the gradient is unbiased. Groups with fewer than two valid rows get 0.

    Rewards 1, 2, 6 of one group: baselines 4, 3.5, 1.5, advantages -3, -1.5, 4.5.

    Raises:
        ValueError: shapes differ.
    """
    index, size, centred = _centred(rewards, groups, valid)
    return (centred * (size / (size - 1).clamp_min(1))[index]).to(rewards.dtype)


@torch.no_grad()
def returns_to_go(rewards: Tensor, completion_mask: Tensor, gamma: float) -> Tensor:
    """REINFORCE++ (Hu et al. 2025): the discounted rewards from each token on, `G_t = r_t + gamma * G_next(t)`.

    rewards `[N, L]`, completion_mask `[N, L]` bool -> `[N, L]` in units of the reward, 0 outside the mask. next(t) is
    the next True position, so holes are jumped over and do not discount. It is GAE with no critic: V = 0, lambda = 1.
    The baseline of the algorithm is `advantages.whiten` over the round.

    Mask [T, F, T], rewards [1, 9, 4], gamma 0.5: [3, 0, 4].
    """
    return gae(rewards, torch.zeros_like(rewards), completion_mask, gamma, 1.0).advantages


@torch.no_grad()
def group_spread(scores: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Rows whose group has two different valid scores, and so something to learn from (DAPO, Yu et al. 2025, eq. 11).

    scores `[N]`, groups `[N]` int64, valid `[N]` bool -> `[N]` bool; a row that is not valid shares the answer of its
    group.

    Raises:
        ValueError: shapes differ.
    """
    index, num_groups = _index(scores, groups, valid)
    infinite = scores.new_full((num_groups,), float("inf"))
    lowest = infinite.scatter_reduce(0, index[valid], scores[valid], "amin")
    highest = (-infinite).scatter_reduce(0, index[valid], scores[valid], "amax")
    return (highest > lowest)[index]


def _centred(rewards: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Group of each row, `[N]`; valid rows of each group, `[G]`; rewards less their group's mean, 0 if not valid."""
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
    names, index = groups.unique(return_inverse=True)
    return index, len(names)
