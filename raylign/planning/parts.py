"""What memory is made of: parts that are there at once make a phase, and the phases the life of an actor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 2**20
GIB = 2**30

Place = Literal["gpu", "host"]


@dataclass(frozen=True)
class Part:
    """Something that takes memory."""

    name: str
    size: int  # bytes
    how: str  # the arithmetic
    shared: int = 0  # bytes of it that other processes of the machine have too


@dataclass(frozen=True)
class Phase:
    name: str
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class RoleMemory:
    """One actor of a role; all are alike."""

    role: str
    num_actors: int
    place: Place
    phases: tuple[Phase, ...]
    host: int  # bytes of the host's memory that one actor needs beside a GPU's (its process, what it offloads)

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        """Bytes."""
        return self.worst.total

    def of(self, name: str) -> int:
        """Bytes of a part in the worst phase."""
        return sum(part.size for part in self.worst.parts if part.name == name)
