from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylign.data import micro_batches


@pytest.mark.parametrize(
    ("max_tokens", "rows_per_item", "expected"),
    [
        (8, 1, [[1], [3, 2], [0]]),  # 9 alone is over the budget; 4 + 4; 2
        (18, 1, [[1, 3], [2, 0]]),  # 9 + 9; 3 + 3
        (18, 2, [[1], [3, 2], [0]]),  # 2 * 9; 2 * (4 + 4)
        (1000, 1, [[1, 3, 2, 0]]),
    ],
)
def test_groups_by_hand(max_tokens, rows_per_item, expected):
    groups = micro_batches(np.array([2, 9, 3, 4]), max_tokens, rows_per_item)
    assert [group.tolist() for group in groups] == expected


def test_equal_lengths_keep_their_order_and_nothing_makes_no_group():
    assert [g.tolist() for g in micro_batches(np.array([3, 3, 3]), 6)] == [[0, 1], [2]]
    assert micro_batches(np.array([], dtype=np.int64), 6) == []


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100), st.integers(1, 2))
def test_every_item_once_within_the_budget_longest_first(lengths, max_tokens, rows_per_item):
    lengths = np.array(lengths, dtype=np.int64)
    groups = micro_batches(lengths, max_tokens, rows_per_item)
    order = [int(i) for group in groups for i in group]
    assert sorted(order) == list(range(len(lengths)))
    assert all(lengths[a] >= lengths[b] for a, b in pairwise(order))
    for group in groups:
        assert len(group) == 1 or len(group) * rows_per_item * lengths[group].max() <= max_tokens
