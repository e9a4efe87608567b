"""Which engine gets which part of a step, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from raylign.actors.routing import LengthBook, assign, mean_lengths
from raylign.types import RolloutBatch


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def lengths(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def test_before_anything_is_seen_every_completion_takes_max_tokens():
    assert LengthBook(64).expect("train", rows(3, 5)) == 128


def test_a_prompt_is_expected_to_do_as_it_did_and_a_new_one_as_the_others():
    book = LengthBook(64)
    book.note("train", rows(0, 1), lengths(10, 30))
    assert book.expect("train", rows(0)) == 10
    assert book.expect("train", rows(1)) == 30
    assert book.expect("train", rows(7)) == 20
    assert book.expect("train", rows(0, 1, 7)) == 60
    book.note("train", rows(0), lengths(20))
    assert book.expect("train", rows(0)) == 15  # half of what it was, half of what it is
    assert book.expect("train", rows(7)) == 20  # (20 + 20) / 2
    assert book.expect("held out", rows(0)) == 20  # row 0 of other prompts is another prompt


def test_a_step_without_prompts_is_no_observation():
    book = LengthBook(64)
    book.note("train", rows(), lengths())
    assert book.expect("train", rows(0)) == 64


def test_equal_parts_go_round_in_order():
    assert assign([8, 8, 8, 8], [0, 0, 0, 0]) == [0, 1, 2, 3]
    assert assign([8, 8, 8, 8, 8], [0, 0]) == [0, 1, 0, 1, 0]
    assert assign([5], [0]) == [0]


def test_the_longest_part_is_placed_first():
    # 9 -> 0, 7 -> 1, 6 -> 1 (13), 5 -> 0 (14); in their order 5, 6, 7, 9 would end at 12 and 15.
    costs = [5, 6, 7, 9]
    taken = assign(costs, [0, 0])
    assert taken == [0, 1, 1, 0]
    assert max(sum(c for c, e in zip(costs, taken, strict=True) if e == engine) for engine in (0, 1)) == 14


def test_an_engine_with_work_left_gets_less():
    assert assign([4, 4, 4], [10, 0]) == [1, 1, 1]
    assert assign([4, 4, 4], [5, 0]) == [1, 1, 0]  # 4, then 8; then 5 is the least


def test_lengths_are_those_of_the_completions_of_each_prompt():
    mask = np.array([[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=bool)
    batch = RolloutBatch(
        tokens=np.zeros((4, 4), np.int32),
        prompt_lengths=np.array([1, 1, 2, 2], np.int32),
        completion_mask=mask,
        logprobs=np.zeros((4, 4), np.float32),
        finished=np.ones(4, bool),
        prompt_rows=rows(0, 0, 1, 1),
        policy_version=rows(0, 0, 0, 0),
    )
    assert mean_lengths(batch, 2).tolist() == [2.0, 2.0]
    assert mean_lengths(batch, 1).tolist() == [3.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("seed", range(20))
def test_no_engine_is_ever_further_behind_than_the_longest_part(seed):
    random = np.random.default_rng(seed)
    costs, loads = random.integers(1, 50, 12).tolist(), [0.0] * 4
    for cost, engine in zip(costs, assign(costs, loads), strict=True):
        loads[engine] += cost
    assert max(loads) - min(loads) <= max(costs)
