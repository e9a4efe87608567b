"""The scheduler that a sweep asks for, in the state that the trials on disk left it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from raylign.config import OnlineConfig, RunConfig
from raylign.config.sweep import ASHAConfig, SweepConfig
from raylign.tracking import read_metrics
from raylign.tuning import folders
from raylign.tuning.trainable import STEP

_NO_END = 10**9  # steps: an offline run's number is known when its data is read


@dataclass(frozen=True)
class _Ended:
    """A trial of an earlier process, for Tune."""

    trial_id: str


def make_scheduler(config: SweepConfig, folder: Path, trials: Mapping[str, RunConfig]) -> TrialScheduler | None:
    """None is first in, first out.

    Args:
        trials: all of the sweep. Those that ended before are told to the scheduler, so that those that are left are
            compared with them.
    """
    match config.scheduler:
        case ASHAConfig(grace_steps=grace, reduction_factor=factor):
            made = ASHAScheduler(
                time_attr=STEP,
                metric=config.metric,
                mode=config.mode,
                max_t=_last_rung(trials, grace),
                grace_period=grace,
                reduction_factor=factor,
                stop_last_trials=False,  # who is at the last step is about to be evaluated
            )
            for name in trials:
                if folders.outcome(folder, name).ended:
                    _replay(made, name, folders.trial_folder(folder, name) / "metrics.jsonl")
            return made
        case _:
            return None


def _last_rung(trials: Mapping[str, RunConfig], grace: int) -> int:
    """Below the last step of every run, where one is known."""
    steps = [
        config.algorithm.steps if isinstance(config.algorithm, OnlineConfig) else _NO_END for config in trials.values()
    ]
    return max(grace, min(steps) - 1)


def _replay(scheduler: ASHAScheduler, name: str, file: Path) -> None:
    ended = cast(TuneTrial, _Ended(name))
    nobody = cast(Any, None)  # ASHA does not look at the controller
    scheduler.on_trial_add(nobody, ended)
    for row in read_metrics(file) if file.exists() else ():
        scheduler.on_trial_result(nobody, ended, row)
