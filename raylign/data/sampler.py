"""The order in which rows are visited: a pure function of the seed, so that a single counter resumes it exactly."""

from __future__ import annotations

import numpy as np

from raylign.errors import UserError
from raylign.types import LongArray


class Sampler:
    """Endless stream of batches of row indices; epoch e has the order that `default_rng([seed, e])` draws.

    Args:
        num_rows: number of rows of the dataset, N.
        batch_size: number of rows of a batch.
        seed: seed of the order.
        drop_last: drop the short batch at the end of an epoch (only without `wrap`).
        wrap: fill the last batch of an epoch from the next epoch, so that every batch is full (online prompts);
            otherwise the last batch of an epoch is short (offline datasets).
    Raises:
        UserError: there are no rows, or `drop_last` would drop all of them.
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
        """Number of batches drawn so far, which is the whole state of the sampler."""
        self._order = (-1, np.empty(0, dtype=np.int64))

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of an epoch, in which every row (except dropped rows) is visited once."""
        return self.num_rows // self.batch_size if self.drop_last else -(-self.num_rows // self.batch_size)

    def next(self) -> LongArray:
        """Return the row indices of the next batch: [batch_size], fewer in the last batch of an epoch.

        With `wrap` or `drop_last` every batch has batch_size rows.
        """
        if self.wrap:
            batch = self._rows(self.num_batches * self.batch_size, self.batch_size)
        else:
            epoch, index = divmod(self.num_batches, self.batches_per_epoch)
            batch = self._epoch(epoch)[index * self.batch_size : (index + 1) * self.batch_size].copy()
        self.num_batches += 1
        return batch

    def state(self) -> dict[str, int]:
        """Return the position and the settings that it is valid for, ready for JSON."""
        return self._identity() | {"num_batches": self.num_batches}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from a saved state.

        Raises:
            UserError: the state belongs to another dataset size, batch size, seed or mode.
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
        """Return `count` row indices from position `start` of all epochs laid end to end."""
        first, offset = divmod(start, self.num_rows)
        last = (start + count - 1) // self.num_rows
        return np.concatenate([self._epoch(e) for e in range(first, last + 1)])[offset : offset + count]

    def _epoch(self, epoch: int) -> LongArray:
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.num_rows))
        return self._order[1]
