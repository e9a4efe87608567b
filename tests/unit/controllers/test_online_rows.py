"""Prompts that come twice in a step are sampled apart."""

import numpy as np

from raylign.controllers.sampling import distinct


def test_no_row_stands_twice_in_a_part_and_none_is_lost():
    parts = distinct(np.array([5, 3, 5, 1, 3, 5]))
    assert [part.tolist() for part in parts] == [[5, 3, 1], [5, 3], [5]]


def test_different_rows_stay_one_part_in_their_order():
    (part,) = distinct(np.array([4, 2, 9]))
    assert part.tolist() == [4, 2, 9]
    assert distinct(np.array([], dtype=np.int64)) == []
