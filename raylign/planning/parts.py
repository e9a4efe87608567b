"""What memory consists of: parts that are held at once make a state, and states make the life of an actor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 2**20
GIB = 2**30

Place = Literal["gpu", "host"]


@dataclass(frozen=True)
class Part:
    """One use of memory, e.g. the weights."""

    name: str
    size: int  # bytes
    how: str  # the arithmetic
    shared: int = 0  # bytes of it that other processes of the machine have too


@dataclass(frozen=True)
class MemoryState:
    """The parts that an actor holds at once while it loads, generates, scores or learns."""

    name: str
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class RoleMemory:
    """Memory of one actor of a role; all actors of a role are alike."""

    role: str
    num_actors: int
    place: Place
    states: tuple[MemoryState, ...]
    host: int  # bytes of host memory that an actor on a GPU needs as well: its process, and what it offloads

    @property
    def worst(self) -> MemoryState:
        """The largest state."""
        return max(self.states, key=lambda state: state.total)

    @property
    def peak(self) -> int:
        """Bytes of the largest state."""
        return self.worst.total

    def part_size(self, name: str) -> int:
        """Return the bytes of a part in the largest state."""
        return sum(part.size for part in self.worst.parts if part.name == name)
