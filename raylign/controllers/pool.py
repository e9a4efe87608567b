"""Keep actors after a run for the next run that needs the same.

An actor needs four seconds of imports before it does anything. A comparison of many short runs keeps its actors: each
run builds its own models in them, from scratch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Closable(Protocol):
    """Actors that can be ended."""

    def kill(self) -> None: ...


class ActorPool:
    """Actors of at most one run, so that what it keeps never blocks the placement of the next run."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, Closable] | None = None

    def take(self, key: Hashable) -> Closable | None:
        """Return the actors that were given under an equal key, or None; actors of another key are ended."""
        kept, self._kept = self._kept, None
        if kept is None or kept[0] == key:
            return kept and kept[1]
        kept[1].kill()
        return None

    def give(self, key: Hashable, roles: Closable) -> None:
        """Keep these actors for the next run."""
        self.close()
        self._kept = (key, roles)

    def close(self) -> None:
        """End the actors that are kept."""
        if self._kept:
            self._kept[1].kill()
        self._kept = None


@contextmanager
def actor_pool() -> Iterator[ActorPool]:
    """Yield a pool that is empty at the end, whatever happens."""
    pool = ActorPool()
    try:
        yield pool
    finally:
        pool.close()
