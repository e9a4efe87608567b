"""Create the Tune scheduler of a sweep, and restore its state from the trials on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from raylign.config import OnlineConfig, RunConfig
from raylign.config.sweep import ASHAConfig, SweepConfig
from raylign.storage.run_folder import RunFolder
from raylign.tuning import folders
from raylign.tuning.trainable import STEP

_UNKNOWN_STEPS = 10**9  # for offline runs, whose number of steps is known only when their data has been read


@dataclass(frozen=True)
class _ReplayedTrial:
    """Stands for a trial of an earlier process; ASHA uses only its id."""

    trial_id: str


def make_scheduler(config: SweepConfig, folder: Path, trials: Mapping[str, RunConfig]) -> TrialScheduler | None:
    """Return the scheduler of a sweep; None runs all trials in order.

    Args:
        config: the sweep.
        folder: the sweep's folder.
        trials: all trials of the sweep. ASHA replays the metrics of those that have ended, to compare the others with
            them.
    """
    match config.scheduler:
        case ASHAConfig(grace_steps=grace, reduction_factor=factor):
            scheduler = ASHAScheduler(
                time_attr=STEP,
                metric=config.metric,
                mode=config.mode,
                max_t=_last_rung(trials, grace),
                grace_period=grace,
                reduction_factor=factor,
                stop_last_trials=False,  # a trial at the last step is about to be evaluated
            )
            for name in trials:
                if folders.read_outcome(folder, name).ended:
                    _replay(scheduler, name, RunFolder(folders.trial_folder(folder, name)))
            return scheduler
        case _:
            return None


def _last_rung(trials: Mapping[str, RunConfig], grace: int) -> int:
    """Return a step below the last step of every run whose number of steps is known."""
    steps = [
        config.algorithm.steps if isinstance(config.algorithm, OnlineConfig) else _UNKNOWN_STEPS
        for config in trials.values()
    ]
    return max(grace, min(steps) - 1)


def _replay(scheduler: ASHAScheduler, name: str, run: RunFolder) -> None:
    """Give the scheduler all metrics that an ended trial reported."""
    trial = cast(TuneTrial, _ReplayedTrial(name))
    no_controller = cast(Any, None)  # ASHA does not use the controller
    scheduler.on_trial_add(no_controller, trial)
    for row in run.metrics():
        scheduler.on_trial_result(no_controller, trial, row)
