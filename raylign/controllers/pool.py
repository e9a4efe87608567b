"""Actors that outlive a run, for the next one that needs the same.

An actor costs four seconds of imports before it does anything. A comparison of many short runs keeps its actors: each
run builds its own models in them, from nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Closable(Protocol):
    def kill(self) -> None: ...


class ActorPool:
    """Holds the actors of at most one run, so that what it keeps never stands in the way of what is placed next."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, Closable] | None = None

    def take(self, key: Hashable) -> Closable | None:
        """What was given under an equal key, or nothing; what was given under another one is ended."""
        kept, self._kept = self._kept, None
        if kept is None or kept[0] == key:
            return kept and kept[1]
        kept[1].kill()
        return None

    def give(self, key: Hashable, roles: Closable) -> None:
        """Keep these for the next run."""
        self.close()
        self._kept = (key, roles)

    def close(self) -> None:
        """End what is kept."""
        if self._kept:
            self._kept[1].kill()
        self._kept = None


@contextmanager
def actor_pool() -> Iterator[ActorPool]:
    """A pool that is empty at the end, whatever happens."""
    pool = ActorPool()
    try:
        yield pool
    finally:
        pool.close()
