"""Advantages without a critic: worked numbers, groups in any order and size, rows that could not be scored."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from raylign.algorithms.baselines import group_advantages, group_spread, leave_one_out_advantages, returns_to_go

T, F = True, False

# Group 7 holds 1, 2, 6 and an invalid row, group -3 holds 5, 5, group 0 one row; they are interleaved.
REWARDS = torch.tensor([1.0, 5.0, 2.0, math.nan, 9.0, 5.0, 6.0])
GROUPS = torch.tensor([7, -3, 7, 7, 0, -3, 7])
VALID = torch.tensor([T, T, T, F, T, T, T])


def close(found: Tensor, expected: list[float], atol: float = 1e-6) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=atol, rtol=0)


def test_worked_group_advantages():
    # mean 3, deviations -2, -1, 3; sample variance 14 / 2 = 7, std 2.645751 + 0.0001
    close(group_advantages(REWARDS, GROUPS, VALID, "none"), [-2, 0, -1, 0, 0, 0, 3])
    scaled = group_advantages(REWARDS, GROUPS, VALID, "group_std")
    close(scaled, [-0.755900, 0, -0.377950, 0, 0, 0, 1.133850])
    assert scaled[0].item() != pytest.approx(-2 / (14 / 3) ** 0.5, abs=0.1)  # the population's std


def test_worked_leave_one_out():
    # others of 1: (2 + 6) / 2 = 4; of 2: 3.5; of 6: 1.5
    close(leave_one_out_advantages(REWARDS, GROUPS, VALID), [-3, 0, -1.5, 0, 0, 0, 4.5])


def test_worked_group_spread():
    assert group_spread(REWARDS, GROUPS, VALID).tolist() == [T, F, T, T, F, F, T]
    # the difference must be between valid scores
    scores, groups = torch.tensor([1.0, 2.0, 1.0]), torch.zeros(3, dtype=torch.int64)
    assert group_spread(scores, groups, torch.tensor([T, F, T])).tolist() == [F, F, F]
    assert group_spread(scores, groups, torch.tensor([T, T, T])).tolist() == [T, T, T]
    assert group_spread(scores, groups, torch.tensor([F, F, F])).tolist() == [F, F, F]


def random_rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards = 3 * torch.randn(60, generator=generator) + 10
    groups = torch.randint(-5, 5, (60,), generator=generator) * 1_000_003
    return rewards, groups, torch.rand(60, generator=generator) < 0.7


def test_they_are_their_definition():
    rewards, groups, valid = random_rows()
    scaled = group_advantages(rewards, groups, valid, "group_std").tolist()
    plain = group_advantages(rewards, groups, valid, "none").tolist()
    left_out = leave_one_out_advantages(rewards, groups, valid).tolist()
    for i in range(60):
        mates = [j for j in range(60) if groups[j] == groups[i] and valid[j]]
        if not valid[i] or len(mates) < 2:
            assert (scaled[i], plain[i], left_out[i]) == (0, 0, 0)
            continue
        values = [rewards[j].item() for j in mates]
        deviation = rewards[i].item() - statistics.fmean(values)
        assert plain[i] == pytest.approx(deviation, abs=1e-5)
        assert scaled[i] == pytest.approx(deviation / (statistics.stdev(values) + 1e-4), abs=1e-5)
        others = [rewards[j].item() for j in mates if j != i]
        assert left_out[i] == pytest.approx(rewards[i].item() - statistics.fmean(others), abs=1e-5)


@pytest.mark.parametrize("seed", [1, 2])
def test_row_order_and_group_names_change_nothing(seed: int):
    rewards, groups, valid = random_rows(seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    for function in (
        lambda r, g, v: group_advantages(r, g, v, "group_std"),
        lambda r, g, v: group_advantages(r, g, v, "none"),
        leave_one_out_advantages,
    ):
        whole = function(rewards, groups, valid)
        torch.testing.assert_close(
            function(rewards[order], groups[order], valid[order]), whole[order], atol=1e-6, rtol=0
        )
        torch.testing.assert_close(function(rewards, 17 - groups, valid), whole, atol=1e-6, rtol=0)
        mixed = function(rewards, groups[order], valid)
        assert not torch.allclose(mixed, whole)  # the control: which rows belong together matters


def test_spread_does_not_depend_on_row_order():
    scores, groups, valid = random_rows()
    scores, groups = (scores > 10).float(), torch.arange(60) % 23
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    whole = group_spread(scores, groups, valid)
    assert 0 < whole.sum() < 60
    assert torch.equal(group_spread(scores[order], groups[order], valid[order]), whole[order])
    assert not torch.equal(group_spread(scores, groups[order], valid), whole)
    assert torch.equal(whole & valid, leave_one_out_advantages(scores, groups, valid).abs() > 1e-9)


def test_whole_groups_may_be_split_off():
    rewards, groups, valid = random_rows()
    part = groups >= 0
    whole = group_advantages(rewards, groups, valid, "group_std")
    found = group_advantages(rewards[part], groups[part], valid[part], "group_std")
    torch.testing.assert_close(found, whole[part], atol=1e-6, rtol=0)


def test_scores_of_any_scale_give_the_same_scaled_advantages():
    rewards, groups, valid = random_rows()
    found = group_advantages(1e4 * rewards + 7e5, groups, valid, "group_std")
    torch.testing.assert_close(found, group_advantages(rewards, groups, valid, "group_std"), atol=1e-3, rtol=0)


def test_equal_rewards_are_no_signal():
    equal = torch.full((8,), 0.1)
    groups, valid = torch.zeros(8, dtype=torch.int64), torch.ones(8, dtype=torch.bool)
    for found in (
        group_advantages(equal, groups, valid, "group_std"),
        leave_one_out_advantages(equal, groups, valid),
    ):
        torch.testing.assert_close(found, torch.zeros(8), atol=1e-9, rtol=0)


@pytest.mark.parametrize("num_rows", [0, 3])
def test_no_valid_row_gives_zeros(num_rows: int):
    rows = torch.full((num_rows,), math.nan), torch.arange(num_rows), torch.zeros(num_rows, dtype=torch.bool)
    assert group_advantages(*rows, "group_std").tolist() == [0.0] * num_rows
    assert leave_one_out_advantages(*rows).tolist() == [0.0] * num_rows
    assert group_spread(*rows).tolist() == [False] * num_rows


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"shapes \[7, 1\], \[7\], \[7\]; each must be \[N\]"):
        group_advantages(REWARDS.unsqueeze(1), GROUPS, VALID, "none")


# --- REINFORCE++


def test_worked_returns_to_go_over_a_hole():
    rewards = torch.tensor([[7.0, 1.0, math.nan, 4.0, 2.0, 7.0]])
    mask = torch.tensor([[F, T, F, T, T, F]])
    # t=4: 2; t=3: 4 + 2/2 = 5; t=1: 1 + 5/2 = 3.5, the hole does not discount
    torch.testing.assert_close(returns_to_go(rewards, mask, 0.5), torch.tensor([[0, 3.5, 0, 5, 2, 0]]))
    torch.testing.assert_close(returns_to_go(rewards, mask, 1.0), torch.tensor([[0, 7.0, 0, 6, 2, 0]]))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_returns_to_go_are_their_definition(gamma: float):
    generator = torch.Generator().manual_seed(3)
    rewards = torch.randn(6, 11, generator=generator)
    mask = torch.rand(6, 11, generator=generator) < 0.6
    mask[0] = False
    found = returns_to_go(rewards, mask, gamma)
    for i in range(6):
        where = mask[i].nonzero().flatten().tolist()
        for k, t in enumerate(where):
            expected = sum(gamma**j * rewards[i, u].item() for j, u in enumerate(where[k:]))
            assert found[i, t].item() == pytest.approx(expected, abs=1e-5)
    assert not found[~mask].any()
    padded = returns_to_go(
        torch.nn.functional.pad(rewards, (2, 3)), torch.nn.functional.pad(mask, (2, 3), value=False), gamma
    )
    torch.testing.assert_close(padded[:, 2:-3], found, atol=1e-6, rtol=0)
