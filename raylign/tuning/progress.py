"""Progress of a sweep: a live table on a terminal, one line per event elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from raylign.config.search_space import Sweep
from raylign.config.sweep import PBTConfig
from raylign.tracking import progress_console
from raylign.tuning.listener import TrialListener
from raylign.tuning.population import Exploit
from raylign.tuning.results import format_value, format_values

_REFRESH = 0.5  # seconds
_MAX_ROWS = 20  # trials in the live table


class SweepProgress(TrialListener):
    """Shows the progress of a sweep, as a context manager around its experiments.

    Args:
        sweep: the sweep that runs.
        num_done: number of trials that ended in an earlier process.
        earlier: the exploit steps of PBT in earlier processes, in order.
        quiet: show nothing.
        console: where to print; the usual progress console if not given.
    """

    def __init__(
        self,
        sweep: Sweep,
        num_done: int,
        *,
        earlier: Iterable[Exploit] = (),
        quiet: bool = False,
        console: Console | None = None,
    ) -> None:
        self._sweep, self._num_done, self._quiet = sweep, num_done, quiet
        self._console = console or progress_console()
        self._status: dict[str, str] = {}
        self._latest: dict[str, tuple[int, float | None]] = {}  # step and metric, by trial
        self._live: Live | None = None
        self._refreshed = 0.0
        self._start = time.monotonic()
        self._changed_values: dict[str, dict[str, Any]] = {}
        for exploit in earlier:
            self._update_values(exploit)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal and not self._quiet:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, trial: str) -> None:
        event = "continued" if trial in self._status else "started"
        self._status[trial] = "running"
        self._line(f"trial {trial}: {event} ({format_values(self._values(trial))})")

    def reported(self, trial: str, step: int, metrics: Mapping[str, Any]) -> None:
        value = metrics.get(self._sweep.config.metric)
        before = self._latest.get(trial)
        self._latest[trial] = (step, float(value) if value is not None else before and before[1])

    def ended(self, trial: str, status: str) -> None:
        if status == "interrupted" and isinstance(self._sweep.config.scheduler, PBTConfig):
            status = "committed"  # it continues in the next generation
        self._status[trial] = status
        step = f" at step {self._latest[trial][0]}" if trial in self._latest else ""
        self._line(f"trial {trial}: {status}{step}; {self._counts()}")

    def exploited(self, step: int, exploit: Exploit) -> None:
        """Print that a trial copied another. Unlike the other lines, this one is printed on a terminal too."""
        self._update_values(exploit)
        if not self._quiet:
            values = format_values(self._values(exploit.trial))
            text = f"trial {exploit.trial}: copied from trial {exploit.donor} at step {step} ({values})"
            self._console.print(text, soft_wrap=True, highlight=False)

    def tick(self) -> None:
        now = time.monotonic()
        if self._live and now - self._refreshed > _REFRESH:
            self._refreshed = now
            self._live.update(self._table(), refresh=True)

    def _line(self, text: str) -> None:
        if not self._quiet and not self._live:
            self._console.print(text, soft_wrap=True, highlight=False)

    def _counts(self) -> str:
        """Return the number of trials with each status: `2 finished, 1 running, 3 waiting`."""
        counts = Counter(self._status.values())
        counts["finished"] += self._num_done
        waiting = self._sweep.num_trials - sum(counts.values())
        parts = [f"{n} {status}" for status, n in sorted(counts.items()) if n]
        return ", ".join([*parts, *([f"{waiting} waiting"] if waiting else [])])

    def _update_values(self, exploit: Exploit) -> None:
        self._changed_values[exploit.trial] = self._values(exploit.donor) | exploit.values

    def _values(self, trial: str) -> dict[str, Any]:
        """Return the values that a trial has now; PBT changes them."""
        first = next(spec.values for spec in self._sweep.trials if spec.id == trial)
        return self._changed_values.get(trial, first)

    def _table(self) -> Table:
        metric = self._sweep.config.metric
        title = f"{self._sweep.config.name}: {self._counts()}, {time.monotonic() - self._start:.0f} s"
        table = Table("trial", "values", "status", "step", metric, title=title)
        running = [trial for trial, status in self._status.items() if status == "running"]
        others = [trial for trial in self._status if trial not in running]
        for trial in [*others[-max(0, _MAX_ROWS - len(running)) :], *running[:_MAX_ROWS]]:
            step, value = self._latest.get(trial, (0, None))
            table.add_row(
                trial, format_values(self._values(trial)), self._status[trial], str(step), format_value(value)
            )
        return table
