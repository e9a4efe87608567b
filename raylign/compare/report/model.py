"""The parts of a report: sections with a figure or a table, and the claims above them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raylign.compare.report.claims import Claim


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells; `wide` cells are texts, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, what to know, a figure and a table, the runs they are of."""

    title: str
    text: str
    runs: tuple[str, ...]
    figure: Path | None = None  # png; the svg is beside it
    table: Table | None = None


@dataclass(frozen=True)
class Report:
    title: str
    command: str
    about: str
    verdict: str
    claims: tuple[Claim, ...]
    sections: tuple[Section, ...]
