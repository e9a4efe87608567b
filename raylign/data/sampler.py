"""The order in which rows are visited: a pure function of the seed, so that one counter resumes it exactly."""

from __future__ import annotations

import numpy as np

from raylign.errors import UserError
from raylign.types import LongArray


class Sampler:
    """Endless stream of row-index batches; epoch e visits the rows in the order of `default_rng([seed, e])`.

    Args:
        num_rows: rows of the dataset, N.
        batch_size: rows of a batch.
        seed: of the order.
        drop_last: leave out the short batch at the end of an epoch (only without `wrap`).
        wrap: every batch is full and the last one of an epoch is filled from the next (online prompts); otherwise
            the last batch of an epoch is short (offline datasets).
    Raises:
        UserError: no rows, or `drop_last` would drop all of them.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int, drop_last: bool = False, wrap: bool = False) -> None:
        if num_rows < 1 or batch_size < 1:
            raise UserError(f"sampler: {num_rows} rows in batches of {batch_size}; both must be at least 1")
        if drop_last and wrap:
            raise ValueError("drop_last and wrap exclude each other: with wrap every batch is full")
        if drop_last and num_rows < batch_size:
            raise UserError(f"sampler: {num_rows} rows make no batch of {batch_size}; lower the batch size")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.wrap = wrap
        self.num_batches = 0
        """Batches drawn so far: the whole position."""
        self._order = (-1, np.empty(0, dtype=np.int64))

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every row (less the dropped ones) was seen."""
        return self.num_rows // self.batch_size if self.drop_last else -(-self.num_rows // self.batch_size)

    def next(self) -> LongArray:
        """Row indices of the next batch: [batch_size], shorter at the end of an epoch without `wrap` or `drop_last`."""
        if self.wrap:
            batch = self._rows(self.num_batches * self.batch_size, self.batch_size)
        else:
            epoch, index = divmod(self.num_batches, self.batches_per_epoch)
            batch = self._epoch(epoch)[index * self.batch_size : (index + 1) * self.batch_size].copy()
        self.num_batches += 1
        return batch

    def state(self) -> dict[str, int]:
        """The position and what it is a position in; JSON-able."""
        return self._identity() | {"num_batches": self.num_batches}

    def restore(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken.

        Raises:
            UserError: the state is of another dataset size, batch size, seed or mode.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"sampler: cannot resume, {name} was {state[name]} and is now {value}; "
                    "resume with the data and settings of the saved run, or start a new run"
                )
        self.num_batches = state["num_batches"]

    def _identity(self) -> dict[str, int]:
        return {name: int(getattr(self, name)) for name in ("num_rows", "batch_size", "seed", "drop_last", "wrap")}

    def _rows(self, start: int, count: int) -> LongArray:
        """Rows `start .. start + count` of all epochs laid end to end."""
        first, offset = divmod(start, self.num_rows)
        last = (start + count - 1) // self.num_rows
        return np.concatenate([self._epoch(e) for e in range(first, last + 1)])[offset : offset + count]

    def _epoch(self, epoch: int) -> LongArray:
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.num_rows))
        return self._order[1]
