"""A fixed list of runs through Ray Tune: as many at a time as the cluster has room for, none of them twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylign.actors.session import ray_session
from raylign.actors.waiting import Stop
from raylign.config import RunConfig
from raylign.controllers.run import make_stages
from raylign.controllers.stopping import stop_on_signal
from raylign.errors import Interrupted
from raylign.tracking import format_clock
from raylign.tuning import folders
from raylign.tuning.experiment import Experiment, Watch
from raylign.tuning.size import check_sizes


@dataclass(frozen=True)
class Trial:
    """One run to be made. `id` names its folder."""

    id: str
    config: RunConfig


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial: `summary` if it came to its end, else `error` says why not."""

    id: str
    folder: Path | None  # the run directory; None if the trial never began
    summary: dict[str, Any] | None
    error: str | None


def run_trials(
    trials: Sequence[Trial],
    folder: Path,
    *,
    resume: bool = True,
    max_failures: int = 1,
    note: Callable[[str], None],
) -> list[TrialResult]:
    """Execute the runs, each in `<folder>/trials/<id>`, and the runs that they need before them.

    Finished trials are not redone and interrupted ones go on from their last commit, if their config is the same.
    How many run at once follows from what is free: each has one placement group for all its actors, or waits.

    Args:
        folder: on a file system that all nodes share.
        resume: go on with trials that are there; False refuses them.
        max_failures: deaths of a trial that are followed by another try.
        note: is told in a line what goes on.
    Returns:
        One result a trial, in the order given.
    Raises:
        UserError: a config is wrong, another one than the trial's folder holds, or larger than the cluster; no trial
            was started.
        PlacementError: nothing could be placed within limits.placement, though nothing ran.
        Interrupted: stopped by a signal.
    """
    asked = {trial.id: folders.with_absolute_output_dir(trial.config) for trial in trials}
    folder = folder.resolve()
    folders.prepare(folder, asked, resume)
    left = {name: config for name, config in asked.items() if not folders.outcome(folder, name).ended}
    if left:
        stop = Stop()
        with stop_on_signal(stop), ray_session():
            check_sizes(left)
            note(f"{len(left)} of {len(asked)} runs to make; first what they need")
            make_stages(left.values())
            Experiment(folder, left, max_failures=max_failures, stop=stop, watch=Noted(note, len(left))).run()
        if stop.requested:
            raise Interrupted(f"stopped; finished trials are kept in {folder}: go on by the same command")
    return [result_of(folder, trial.id) for trial in trials]


def result_of(folder: Path, name: str) -> TrialResult:
    """What the trial's folder says."""
    found = folders.outcome(folder, name)
    error = None if found.summary else found.error or found.stopped or "was not run to its end"
    return TrialResult(name, found.folder if found.began else None, found.summary, error)


class Noted(Watch):
    """One line for each trial that begins or ends, and when all will have.

    Args:
        total: number of trials.
    """

    def __init__(self, note: Callable[[str], None], total: int) -> None:
        self._note, self._total, self._ended = note, total, 0
        self._start = time.monotonic()

    def started(self, trial: str) -> None:
        self._note(f"{trial}: started")

    def ended(self, trial: str, how: str) -> None:
        self._ended += 1
        spent = time.monotonic() - self._start
        left = spent / self._ended * (self._total - self._ended)
        ahead = f", about {format_clock(left)} to go" if left else ""
        self._note(f"{trial}: {how}; {self._ended} of {self._total} in {format_clock(spent)}{ahead}")
