"""Events of the trials of an experiment, and a listener that prints a line for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from raylign.tracking import format_clock


class TrialListener:
    """Receives the events of an experiment, in the driver's thread. Subclasses override the methods that they need."""

    def started(self, trial: str) -> None:
        """A trial started or continued."""

    def reported(self, trial: str, step: int, metrics: Mapping[str, Any]) -> None:
        """A trial reported the metrics of a step."""

    def ended(self, trial: str, status: str) -> None:
        """A trial's process ended; see `folders.Outcome.status`."""

    def tick(self) -> None:
        """Called several times a second."""


class LineProgress(TrialListener):
    """Prints one line for each trial that starts or ends, with the estimated time left.

    Args:
        note: prints a line.
        total: number of trials.
    """

    def __init__(self, note: Callable[[str], None], total: int) -> None:
        self._note, self._total, self._num_ended = note, total, 0
        self._start = time.monotonic()

    def started(self, trial: str) -> None:
        self._note(f"{trial}: started")

    def ended(self, trial: str, status: str) -> None:
        self._num_ended += 1
        spent = time.monotonic() - self._start
        left = spent / self._num_ended * (self._total - self._num_ended)
        estimate = f", about {format_clock(left)} to go" if left else ""
        self._note(f"{trial}: {status}; {self._num_ended} of {self._total} in {format_clock(spent)}{estimate}")
