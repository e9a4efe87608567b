"""Importance weights: worked numbers of both modes at both levels, masks, padding and extremes."""

import math
from typing import Literal

import pytest
import torch

from raylign.algorithms.importance import importance_weights

T, F = True, False
Mode = Literal["truncate", "mask"]
Level = Literal["token", "sequence"]

ENGINE = torch.tensor([[math.nan, -1.0, -1.0, -1.0, math.inf], [math.nan, -2.0, 5.0, -2.0, -2.0]])
# ratios: row 0: 1.5, 3, 0.25 (product 1.125); row 1 with a hole: 0.5, 0.8, 1 (product 0.4)
RATIO = torch.tensor([[1.0, 1.5, 3.0, 0.25, 1.0], [1.0, 0.5, 9.0, 0.8, 1.0]])
LEARNER = ENGINE + RATIO.log()
MASK = torch.tensor([[F, T, T, T, F], [F, T, F, T, T]])


@pytest.mark.parametrize(
    ("mode", "level", "expected"),
    [
        ("truncate", "token", [[0, 1.5, 2.1, 0.25, 0], [0, 0.5, 0, 0.8, 1]]),
        ("mask", "token", [[0, 1.5, 0, 0, 0], [0, 0.5, 0, 0.8, 1]]),  # 0.25 is below 1 / 2.1, 3 is above 2.1
        ("truncate", "sequence", [[0, 1.125, 1.125, 1.125, 0], [0, 0.4, 0, 0.4, 0.4]]),
        ("mask", "sequence", [[0, 1.125, 1.125, 1.125, 0], [0, 0, 0, 0, 0]]),
    ],
)
def test_worked_weights(mode: Mode, level: Level, expected: list[list[float]]):
    found = importance_weights(LEARNER, ENGINE, MASK, mode, 2.1, level)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_sequence_weight_is_cut_as_a_whole():
    learner, engine = torch.log(torch.tensor([[2.0, 3.0]])), torch.zeros(1, 2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(
        importance_weights(learner, engine, mask, "truncate", 4.0, "sequence"), torch.full((1, 2), 4.0)
    )
    torch.testing.assert_close(
        importance_weights(learner, engine, mask, "truncate", 7.0, "sequence"), torch.full((1, 2), 6.0)
    )


def test_swapped_arguments_are_another_number():
    found = importance_weights(ENGINE, LEARNER, MASK, "truncate", 2.1, "token")
    assert found[0, 3].item() == pytest.approx(2.1)  # 1 / 0.25, cut


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_equal_logprobs_weigh_one_and_carry_no_gradient(level: Level):
    logprobs = torch.full((2, 5), -1.5, requires_grad=True)
    found = importance_weights(logprobs, logprobs, MASK, "truncate", 2.0, level)
    assert not found.requires_grad
    torch.testing.assert_close(found, MASK.float())


def test_absurd_ratios_stay_finite():
    learner, engine = torch.tensor([[0.0, -300.0]]), torch.tensor([[-300.0, 0.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    wide = importance_weights(learner, engine, mask, "truncate", 1e30, "token")
    torch.testing.assert_close(wide, torch.tensor([[20.0, -20.0]]).exp())
    assert importance_weights(learner, engine, mask, "mask", 2.0, "token").tolist() == [[0, 0]]


@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_padding_order_and_split_change_nothing(mode: Mode, level: Level):
    generator = torch.Generator().manual_seed(0)
    engine = torch.randn(12, 9, generator=generator)
    learner = engine + 0.4 * torch.randn(12, 9, generator=generator)
    mask = torch.rand(12, 9, generator=generator) < 0.5

    def weigh(learner: torch.Tensor, engine: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return importance_weights(learner, engine, mask, mode, 2.0, level)

    whole = weigh(learner, engine, mask)
    order = torch.randperm(12, generator=generator)
    padded = weigh(*(torch.nn.functional.pad(x, (1, 4)) for x in (learner, engine, mask)))
    torch.testing.assert_close(padded[:, 1:-4], whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(weigh(learner[order], engine[order], mask[order]), whole[order], atol=1e-6, rtol=0)
    parts = [weigh(*part) for part in zip(learner.split(5), engine.split(5), mask.split(5), strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"shapes \[2, 5\], \[2, 1\], \[2, 5\]; they must agree"):
        importance_weights(LEARNER, ENGINE[:, :1], MASK, "mask", 2.0, "token")
