"""Run a fixed list of runs with Ray Tune, as many at a time as the cluster has room for."""

from __future__ import annotations

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
from raylign.tuning import folders
from raylign.tuning.experiment import Experiment
from raylign.tuning.listener import LineProgress
from raylign.tuning.size import check_sizes


@dataclass(frozen=True)
class Trial:
    """A run to execute; `id` names its folder."""

    id: str
    config: RunConfig


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a trial: `summary` if it finished, else `error` says why not."""

    id: str
    folder: Path | None  # the run directory; None if the trial never started
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
    """Execute runs, each in `<folder>/trials/<id>`, and before them the runs that they need.

    Finished trials are not repeated. Interrupted trials continue from their last commit if their config is unchanged.
    A trial starts as soon as one placement group for all its actors fits into the free resources.

    Args:
        trials: the runs, in the order in which they start.
        folder: where their folders are made, on a file system that all nodes share.
        resume: continue trials that exist already; False raises an error if there are any.
        max_failures: how many times a failed trial is tried again.
        note: prints a line of progress.
    Returns:
        One result per trial, in the order given.
    Raises:
        UserError: a config is wrong, differs from the one in the trial's folder, or does not fit into the cluster; no
            trial was started.
        PlacementError: no trial was running, and none could be placed within limits.placement.
        Interrupted: stopped by a signal.
    """
    configs = {trial.id: folders.with_absolute_output_dir(trial.config) for trial in trials}
    folder = folder.resolve()
    folders.prepare(folder, configs, resume)
    left = {name: config for name, config in configs.items() if not folders.read_outcome(folder, name).ended}
    if left:
        stop = Stop()
        with stop_on_signal(stop), ray_session():
            check_sizes(left)
            note(f"{len(left)} of {len(configs)} runs to execute; first the runs that they need")
            make_stages(left.values())
            progress = LineProgress(note, len(left))
            Experiment(folder, left, max_failures=max_failures, stop=stop, listener=progress).run()
        if stop.requested:
            raise Interrupted(f"stopped; finished trials are kept in {folder}: the same command continues")
    return [_read_result(folder, trial.id) for trial in trials]


def _read_result(folder: Path, name: str) -> TrialResult:
    outcome = folders.read_outcome(folder, name)
    error = None if outcome.summary else outcome.error or outcome.stopped or "did not run to its end"
    return TrialResult(name, outcome.folder if outcome.began else None, outcome.summary, error)
