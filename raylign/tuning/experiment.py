"""Run trials with Ray Tune, each in its own placement group; no actor is left when it returns."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import TrialScheduler

from raylign.actors.layout import bundles_of
from raylign.actors.waiting import Stop
from raylign.config import RunConfig
from raylign.errors import PlacementError, one_line
from raylign.files import write_atomic
from raylign.tuning import folders
from raylign.tuning.listener import TrialListener
from raylign.tuning.optuna_searcher import OptunaSearcher
from raylign.tuning.trainable import STEP, Trainable, Work, run_to_end

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # prints a banner even when asked to be quiet
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a run resolves relative paths where the sweep was started
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run writes its own metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # raylign handles signals
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # evaluation metrics come only every few steps
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # raylign resumes from the runs' own commits
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",  # `_StopCondition` detects this
}


class Experiment:
    """One call of Ray Tune that runs a set of trials.

    Args:
        folder: the sweep's folder, which holds the config of every trial (see `folders`).
        trials: configs by trial id, in the order in which they start.
        max_failures: how many times a failed trial is tried again.
        stop: ends the experiment when it is requested.
        listener: receives the events of the trials.
        scheduler: may stop trials early.
        searcher: suggests the trials instead, whenever there is room for another.
        max_seconds: stop trials that still run after this many seconds.
        work: what each trial executes.
        records_early_stops: whether a trial whose work ended without a summary counts as stopped early by the scheduler.
            False if such trials continue in another experiment.
    """

    def __init__(
        self,
        folder: Path,
        trials: Mapping[str, RunConfig],
        *,
        max_failures: int,
        stop: Stop,
        listener: TrialListener,
        scheduler: TrialScheduler | None = None,
        searcher: OptunaSearcher | None = None,
        max_seconds: float | None = None,
        work: Work = run_to_end,
        records_early_stops: bool = True,
    ) -> None:
        self._folder, self._trials, self._listener = folder, trials, listener
        self._scheduler, self._searcher = scheduler, searcher
        self._max_failures, self._work, self._records_early_stops = max_failures, work, records_early_stops
        limits = [config.limits for config in (trials.values() if searcher is None else searcher.examples)]
        patience = max(limit.placement for limit in limits)
        self._stop_condition = _StopCondition(stop, max_seconds, patience)

    def run(self) -> None:
        """Run until every trial has ended or failed, a stop is requested, or the time is up.

        Raises:
            PlacementError: no trial was running, and none could be placed within limits.placement.
        """
        folder, trials = (
            self._folder,
            dict(self._trials),
        )  # locals, because Tune pickles the functions below with all that they refer to
        trainable = Trainable(self._folder, self._work)

        def trial(config: dict[str, Any]) -> None:  # Tune accepts only a function
            trainable(config)

        with _quiet_tune():
            tune.Tuner(
                tune.with_resources(trial, lambda config: _placement_group(folder, trials, config["trial"])),
                param_space=None if self._searcher else {"trial": tune.grid_search(list(self._trials))},
                tune_config=tune.TuneConfig(
                    search_alg=self._searcher,
                    num_samples=self._searcher.num_left if self._searcher else 1,
                    scheduler=self._scheduler,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(folders.tune_folder(self._folder)),
                    stop=self._stop_condition,
                    failure_config=tune.FailureConfig(max_failures=self._max_failures),
                    callbacks=[self._trial_events(), _NoProgress()],
                    verbose=0,
                ),
            ).fit()
        self._stop_condition.check()

    def _trial_events(self) -> _TrialEvents:
        return _TrialEvents(self._folder, self._listener, self._stop_condition, self._records_early_stops)


class _StopCondition(tune.Stopper):
    """Ends the experiment on request, when the time is up, or when no trial can be placed."""

    def __init__(self, stop: Stop, max_seconds: float | None, patience: float) -> None:
        self._stop, self._patience = stop, patience
        self._end = None if max_seconds is None else time.monotonic() + max_seconds
        self._last_progress = time.monotonic()
        self.starved = self.ending = False

    def update(self, num_running: int, num_waiting: int) -> None:
        """Note how long trials have been waiting while none is running."""
        now = time.monotonic()
        if num_running or not num_waiting:
            self._last_progress = now
        self.starved = self.starved or now - self._last_progress > self._patience

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        is_late = self._end is not None and time.monotonic() > self._end
        self.ending = self.ending or self._stop.requested or self.starved or is_late
        return self.ending

    def check(self) -> None:
        """Raise PlacementError if the experiment ended because no trial could be placed."""
        if self.starved:
            raise PlacementError(
                f"placement: no trial is running and none could be placed within limits.placement {self._patience:g} s; has a "
                "node left? wait for other work to end, or add nodes, and continue with --resume"
            )


class _NoProgress(TrialProgressCallback):
    """Replaces the progress callback that Tune would add, which prints lines even with verbose=0."""

    def _print(self, msg: str) -> None: ...


class _TrialEvents(tune.Callback):
    """Passes Tune's events on to the listener, and records which trials the scheduler stopped."""

    def __init__(
        self, folder: Path, listener: TrialListener, stop_condition: _StopCondition, records_stops: bool
    ) -> None:
        self._folder, self._listener, self._stop_condition = folder, listener, stop_condition
        self._records_stops = records_stops

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its settings to disk, where nobody reads them

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        running = sum(trial.status == TuneTrial.RUNNING for trial in trials)
        self._stop_condition.update(running, sum(trial.status == TuneTrial.PENDING for trial in trials))
        self._listener.tick()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._listener.started(_trial_name(trial))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **_: Any
    ) -> None:
        if STEP in result:
            self._listener.reported(_trial_name(trial), result[STEP], result)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        name = _trial_name(trial)
        outcome = folders.read_outcome(self._folder, name)
        if self._records_stops and not outcome.ended and not outcome.error and not self._stop_condition.ending:
            step = (trial.last_result or {}).get(STEP)
            record = {"reason": f"stopped early by the scheduler at step {step}", STEP: step}
            write_atomic(outcome.folder / folders.STOPPED, json.dumps(record))
            outcome = folders.read_outcome(self._folder, name)
        self._listener.ended(name, outcome.status)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        name = _trial_name(trial)
        file = folders.trial_folder(self._folder, name) / folders.ERROR
        if not file.exists():  # its process died before it could write the file
            write_atomic(file, json.dumps({"error": _first_line(trial)}))
        self._listener.ended(name, "failed")


def _placement_group(folder: Path, trials: Mapping[str, RunConfig], name: str) -> tune.PlacementGroupFactory:
    """Return the bundles for all actors of a trial, after an empty one for its driver."""
    config = trials.get(name) or folders.load_trial_config(folder, name)
    return tune.PlacementGroupFactory([{}, *bundles_of(config)], strategy=config.placement.strategy)


def _trial_name(trial: TuneTrial) -> str:
    return trial.config["trial"]


def _first_line(trial: TuneTrial) -> str:
    error = trial.get_pickled_error()
    return one_line(error) if error else "its process died"


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Apply our settings of Tune and silence its loggers; the listener reports what users need to know."""
    before = {key: os.environ.get(key) for key in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.air", "ray.train")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
