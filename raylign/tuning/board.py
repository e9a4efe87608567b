"""What a person sees while a sweep runs: a table that changes on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raylign.config.draw import Sweep
from raylign.tracking import progress_console
from raylign.tuning.experiment import Watch
from raylign.tuning.results import number, short

_REFRESH = 0.5  # seconds
_MOST = 20  # trials shown at once


class Board(Watch):
    """A context manager around the experiment."""

    def __init__(self, sweep: Sweep, done: int, *, quiet: bool = False, console: Console | None = None) -> None:
        self._sweep, self._done, self._quiet = sweep, done, quiet
        self._console = console or progress_console()
        self._status: dict[str, str] = {}
        self._last: dict[str, tuple[int, float | None]] = {}
        self._live: Live | None = None
        self._shown = 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._quiet:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, trial: str) -> None:
        self._status[trial] = "runs"
        self._line(f"trial {trial}: started ({self._values(trial)})")

    def reported(self, trial: str, step: int, metrics: Mapping[str, Any]) -> None:
        value = metrics.get(self._sweep.config.metric)
        before = self._last.get(trial)
        self._last[trial] = (step, float(value) if value is not None else before and before[1])

    def ended(self, trial: str, how: str) -> None:
        self._status[trial] = how
        step = f" at step {self._last[trial][0]}" if trial in self._last else ""
        self._line(f"trial {trial}: {how}{step}; {self._count()}")

    def tick(self) -> None:
        now = time.monotonic()
        if self._live and now - self._shown > _REFRESH:
            self._shown = now
            self._live.update(self._table(), refresh=True)

    def note(self, text: str) -> None:
        """A line that stays, on a terminal too."""
        if not self._quiet:
            self._console.print(text, soft_wrap=True, highlight=False)

    def _line(self, text: str) -> None:
        if not self._quiet and not self._live:
            self._console.print(text, soft_wrap=True, highlight=False)

    def _count(self) -> str:
        counts = Counter(self._status.values())
        counts["finished"] += self._done
        waiting = self._sweep.num_trials - sum(counts.values())
        told = [f"{n} {'running' if status == 'runs' else status}" for status, n in sorted(counts.items()) if n]
        return ", ".join([*told, *([f"{waiting} waiting"] if waiting else [])])

    def _values(self, trial: str) -> str:
        values = next(point.values for point in self._sweep.points if point.id == trial)
        return ", ".join(f"{short(key, list(values))} {number(value)}" for key, value in values.items())

    def _table(self) -> Table:
        metric = self._sweep.config.metric
        title = f"{self._sweep.config.name}: {self._count()}, {time.monotonic() - self._start:.0f} s"
        table = Table("trial", "values", "status", "step", metric, title=title)
        running = [trial for trial, status in self._status.items() if status == "runs"]
        others = [trial for trial in self._status if trial not in running]
        for trial in [*others[-max(0, _MOST - len(running)) :], *running[:_MOST]]:
            step, value = self._last.get(trial, (0, None))
            table.add_row(trial, self._values(trial), self._status[trial], str(step), number(value))
        return table
