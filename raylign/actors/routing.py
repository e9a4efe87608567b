"""Choose the engine for each part of a step: the longest parts first, each to the engine with the least left to do.

Arithmetic alone. A sample's seed follows from the run, the step, the prompt and the sample, so the choice
decides how long a step takes and never its result.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from raylign.types import FloatArray, LongArray, RolloutBatch

_NEW = 0.5  # weight of the newest length in a prompt's mean: lengths move as the policy learns


class LengthBook:
    """Record of the completion lengths of each prompt, to predict the next ones.

    A prompt that was never sampled is expected to be like the others; before the first sample, all take `max_tokens`.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._means: dict[tuple[Hashable, int], float] = {}  # by prompt set and row
        self._mean: float | None = None  # of all prompts

    def note(self, prompts: Hashable, rows: LongArray, lengths: FloatArray) -> None:
        """Record `lengths` [B], the mean tokens of the completions of each prompt in `rows` [B]."""
        for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
            known = self._means.setdefault((prompts, row), length)
            self._means[prompts, row] = (1 - _NEW) * known + _NEW * length
        if len(rows):
            seen, mean = float(lengths.mean()), self._mean
            self._mean = seen if mean is None else (1 - _NEW) * mean + _NEW * seen

    def expect(self, prompts: Hashable, rows: LongArray) -> float:
        """Return the expected tokens of one completion of every prompt in `rows`, summed."""
        unknown = self._max_tokens if self._mean is None else self._mean
        return sum(self._means.get((prompts, row), unknown) for row in rows.tolist())


def assign(costs: Sequence[float], loads: Sequence[float]) -> list[int]:
    """Return the engine of each part: longest processing time first (Graham 1969), at most 4/3 of the best makespan.

    Equal parts over idle engines go round in order.

    >>> assign([4, 9, 5], [0, 0])
    [1, 0, 1]

    Args:
        costs: expected tokens of each part.
        loads: expected tokens that each engine has left already.
    """
    loads = list(loads)
    taken = [0] * len(costs)
    for part in sorted(range(len(costs)), key=lambda part: -costs[part]):
        engine = min(range(len(loads)), key=lambda engine: loads[engine])
        loads[engine] += costs[part]
        taken[part] = engine
    return taken


def mean_lengths(batch: RolloutBatch, num_samples: int) -> FloatArray:
    """Return the mean tokens of each prompt's completions: [N / num_samples]; the samples of a prompt are adjacent."""
    lengths = batch.completion_mask.sum(axis=1, dtype=np.float32)
    return lengths.reshape(-1, num_samples).mean(axis=1)
