"""Penalties for length: worked numbers of each and of all together."""

from typing import Any

import pytest
import torch

from raylign.algorithms.score_shaping import shape_scores

OFF: dict[str, Any] = {
    "missing_eos_penalty": 0.0,
    "length_penalty": 0.0,
    "overlong_buffer": None,
    "overlong_penalty": 1.0,
    "max_tokens": 10,
}
SCORES = torch.tensor([1.0, 1.0, 1.0, -2.0, 0.5])
LENGTHS = torch.tensor([0, 6, 7, 9, 10])
FINISHED = torch.tensor([True, True, False, True, False])


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({}, [0, 0, 0, 0, 0]),
        ({"missing_eos_penalty": 0.5}, [0, 0, 0.5, 0, 0.5]),
        ({"length_penalty": 0.1}, [0, 0.6, 0.7, 0.9, 1.0]),
        # up to 10 - 4 = 6 nothing, then a quarter a token
        ({"overlong_buffer": 4}, [0, 0, 0.25, 0.75, 1.0]),
        ({"overlong_buffer": 4, "overlong_penalty": 2.0}, [0, 0, 0.5, 1.5, 2.0]),
        ({"overlong_buffer": 10}, [0, 0.6, 0.7, 0.9, 1.0]),
        (
            {"missing_eos_penalty": 0.5, "length_penalty": 0.1, "overlong_buffer": 4},
            [0, 0.6, 1.45, 1.65, 2.5],
        ),
    ],
)
def test_worked_penalties(settings: dict[str, Any], taken: list[float]):
    found = shape_scores(SCORES, LENGTHS, FINISHED, **{**OFF, **settings})
    torch.testing.assert_close(found, SCORES - torch.tensor(taken))


def test_longer_than_the_limit_costs_the_whole_penalty_and_no_more():
    found = shape_scores(
        torch.zeros(2), torch.tensor([10, 30]), torch.tensor([True, True]), **{**OFF, "overlong_buffer": 4}
    )
    assert found.tolist() == [-1, -1]


def test_the_scores_of_the_caller_stay():
    before = SCORES.clone()
    shape_scores(SCORES, LENGTHS, FINISHED, **{**OFF, "length_penalty": 1.0})
    assert torch.equal(SCORES, before)


def test_refusals():
    with pytest.raises(ValueError, match="overlong_buffer is 11, longer than max_tokens 10"):
        shape_scores(SCORES, LENGTHS, FINISHED, **{**OFF, "overlong_buffer": 11})
    with pytest.raises(ValueError, match=r"shapes \[5, 1\], \[5\], \[5\]"):
        shape_scores(SCORES.unsqueeze(1), LENGTHS, FINISHED, **OFF)
