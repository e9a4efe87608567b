"""The parts of a report: sections with a figure or a table, and the claims above them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raylign.compare.report.claims import Claim


@dataclass(frozen=True)
class Table:
    """A header and rows of cells; `wide` cells are texts, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, an explanation, a figure, a table, and the runs behind them."""

    title: str
    text: str
    runs: tuple[str, ...]
    figure: Path | None = None  # png; the svg has the same name
    table: Table | None = None


@dataclass(frozen=True)
class Report:
    """A whole report, before it is written as HTML or Markdown."""

    title: str
    command: str
    summary: str
    verdict: str
    claims: tuple[Claim, ...]
    sections: tuple[Section, ...]
