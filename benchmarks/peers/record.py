"""Shared code of the peer scripts: arguments, the clock, and the JSON that a driver reads. Standard library only.

Every script imports this module first, so that the time of its heavy imports is measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()


class Record:
    """Times and losses of one run of one side.

    The JSON it writes:
        losses: one mapping of metric names to numbers for each optimizer step (DPO) or round (PPO)
        seconds_import: from the first line of the script until its imports are done
        seconds_inner: the work itself, with the reference pass wherever the side does it; no imports, no loading
        items: pairs or samples worked on
        breakdown: seconds by phase
    """

    def __init__(self, work: Path, dtype: str, output: Path, variant: str | None) -> None:
        self.work, self.dtype, self.output, self.variant = work, dtype, output, variant
        self.settings: dict[str, Any] = json.loads((work / "settings.json").read_text())
        self.losses: list[dict[str, float]] = []
        self.breakdown: dict[str, float] = {}
        self.seconds_import = 0.0

    @classmethod
    def from_arguments(cls, *variants: str) -> Record:
        parser = argparse.ArgumentParser()
        parser.add_argument("--work", type=Path, required=True, help="folder made by work.py")
        parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
        parser.add_argument("--json", type=Path, required=True, help="file the result is written to")
        if variants:
            parser.add_argument("--variant", choices=variants, default=variants[0])
        given = parser.parse_args()
        return cls(given.work, given.dtype, given.json, given.variant if variants else None)

    def imported(self) -> None:
        """Mark that the heavy imports are done."""
        self.seconds_import = time.perf_counter() - STARTED

    def rows(self, name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.work / name).read_text().splitlines()]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to `breakdown[name]`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.breakdown[name] = self.breakdown.get(name, 0.0) + time.perf_counter() - begun

    def write(self, *, items: int, inner: tuple[str, ...]) -> None:
        """Write the JSON; `inner` names the phases that are the work itself."""
        result = {
            "losses": self.losses,
            "seconds_import": self.seconds_import,
            "seconds_inner": sum(self.breakdown[name] for name in inner),
            "items": items,
            "breakdown": self.breakdown,
        }
        self.output.write_text(json.dumps(result, indent=2))
