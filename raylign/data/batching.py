"""Batches of rows of similar length, so that a forward pass computes little padding."""

from __future__ import annotations

import numpy as np

from raylign.types import LongArray

ROWS_PER_REFERENCE_CALL = 256
"""Rows of a dataset that a reference scores in one call: progress shows, and no call runs into a deadline."""


def default_pass_tokens(on_gpu: bool) -> int:
    """Return the default number of padded tokens of a pass: enough to keep a GPU busy, or to fit a CPU's cache."""
    return 16_384 if on_gpu else 2048


def micro_batches(lengths: LongArray, max_tokens: int, rows_per_item: int = 1, min_groups: int = 1) -> list[LongArray]:
    """Split items into groups whose padded size stays within a budget.

    Every item is in exactly one group; `len(group) * rows_per_item * max(lengths[group]) <= max_tokens` unless the
    group is a single item that is too long by itself. Deterministic; the longest items come first, so that a machine
    with too little memory fails at once.

    Args:
        lengths: tokens of each item (for pairs, of the longer side): [N].
        max_tokens: budget of padded tokens for a group.
        rows_per_item: rows that an item adds to the padded batch; 2 for pairs.
        min_groups: smallest number of groups, if there are enough items: one for each rank that shares the work.
    Returns:
        Groups of item indices, int64.

    >>> [group.tolist() for group in micro_batches(np.array([2, 9, 3, 4]), max_tokens=8)]
    [[1], [3, 2], [0]]
    >>> [group.tolist() for group in micro_batches(np.array([2, 9, 3, 4]), max_tokens=99, min_groups=2)]
    [[1, 3], [2, 0]]
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    groups: list[LongArray] = []
    at = 0
    while at < len(order):
        longest = max(int(lengths[order[at]]), 1)
        size = max(max_tokens // (rows_per_item * longest), 1)
        groups.append(order[at : at + size])
        at += size
    while len(groups) < min(min_groups, len(order)):
        # Halve the heaviest group, so that the ranks' shares are about equal.
        weights = [len(group) * max(int(lengths[group[0]]), 1) * (len(group) > 1) for group in groups]
        heaviest = int(np.argmax(weights))
        group = groups[heaviest]
        groups[heaviest : heaviest + 1] = [group[: len(group) // 2], group[len(group) // 2 :]]
    return groups
