"""What a person sees while a sweep runs: a table that changes on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raylign.config.draw import Sweep
from raylign.config.sweep import PBTConfig
from raylign.tracking import progress_console
from raylign.tuning.experiment import Watch
from raylign.tuning.population import TakeOver
from raylign.tuning.results import number, told

_REFRESH = 0.5  # seconds
_MOST = 20  # trials shown at once


class Board(Watch):
    """A context manager around the experiment.

    Args:
        done: trials that had ended before.
        earlier: what a population had become before, in order.
    """

    def __init__(
        self,
        sweep: Sweep,
        done: int,
        *,
        earlier: Iterable[TakeOver] = (),
        quiet: bool = False,
        console: Console | None = None,
    ) -> None:
        self._sweep, self._done, self._quiet = sweep, done, quiet
        self._console = console or progress_console()
        self._status: dict[str, str] = {}
        self._last: dict[str, tuple[int, float | None]] = {}
        self._live: Live | None = None
        self._shown = 0.0
        self._start = time.monotonic()
        self._taken: dict[str, dict[str, Any]] = {}
        for move in earlier:
            self._adopt(move)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._quiet:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, trial: str) -> None:
        how = "goes on" if trial in self._status else "started"
        self._status[trial] = "runs"
        self._line(f"trial {trial}: {how} ({told(self._values(trial))})")

    def reported(self, trial: str, step: int, metrics: Mapping[str, Any]) -> None:
        value = metrics.get(self._sweep.config.metric)
        before = self._last.get(trial)
        self._last[trial] = (step, float(value) if value is not None else before and before[1])

    def ended(self, trial: str, how: str) -> None:
        if how == "interrupted" and isinstance(self._sweep.config.scheduler, PBTConfig):
            how = "committed"  # and goes on in the next generation
        self._status[trial] = how
        step = f" at step {self._last[trial][0]}" if trial in self._last else ""
        self._line(f"trial {trial}: {how}{step}; {self._count()}")

    def took_over(self, step: int, move: TakeOver) -> None:
        """A trial goes on as another one does: a line that stays, on a terminal too."""
        self._adopt(move)
        if not self._quiet:
            text = (
                f"trial {move.trial}: goes on from trial {move.donor} at step {step} ({told(self._values(move.trial))})"
            )
            self._console.print(text, soft_wrap=True, highlight=False)

    def tick(self) -> None:
        now = time.monotonic()
        if self._live and now - self._shown > _REFRESH:
            self._shown = now
            self._live.update(self._table(), refresh=True)

    def _line(self, text: str) -> None:
        if not self._quiet and not self._live:
            self._console.print(text, soft_wrap=True, highlight=False)

    def _count(self) -> str:
        counts = Counter(self._status.values())
        counts["finished"] += self._done
        waiting = self._sweep.num_trials - sum(counts.values())
        parts = [f"{n} {'running' if status == 'runs' else status}" for status, n in sorted(counts.items()) if n]
        return ", ".join([*parts, *([f"{waiting} waiting"] if waiting else [])])

    def _adopt(self, move: TakeOver) -> None:
        self._taken[move.trial] = self._values(move.donor) | move.values

    def _values(self, trial: str) -> dict[str, Any]:
        drawn = next(point.values for point in self._sweep.points if point.id == trial)
        return self._taken.get(trial, drawn)

    def _table(self) -> Table:
        metric = self._sweep.config.metric
        title = f"{self._sweep.config.name}: {self._count()}, {time.monotonic() - self._start:.0f} s"
        table = Table("trial", "values", "status", "step", metric, title=title)
        running = [trial for trial, status in self._status.items() if status == "runs"]
        others = [trial for trial in self._status if trial not in running]
        for trial in [*others[-max(0, _MOST - len(running)) :], *running[:_MOST]]:
            step, value = self._last.get(trial, (0, None))
            table.add_row(trial, told(self._values(trial)), self._status[trial], str(step), number(value))
        return table
