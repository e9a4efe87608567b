"""One call of Tune: trials into placement groups, and nothing left when it returns."""

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
from raylign.tuning.searching import Asked
from raylign.tuning.trainable import STEP, Trainable, Work, whole_run

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # prints a banner even when asked to be quiet
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a run start where the sweep was started
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run writes its own metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are ours
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an evaluation comes every few steps only
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the runs' own commits are what is resumed
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",  # we look ourselves
}


class Watch:
    """Is told what goes on, in the driver's thread."""

    def started(self, trial: str) -> None: ...

    def reported(self, trial: str, step: int, metrics: Mapping[str, Any]) -> None: ...

    def ended(self, trial: str, how: str) -> None: ...

    def tick(self) -> None:
        """Several times a second."""


class Experiment:
    """Trials that are to be run to their ends.

    Args:
        folder: of the sweep; every trial's config is there (see `folders`).
        trials: by id, in the order in which they begin.
        scheduler: may end a trial early; none if not given.
        searcher: makes the trials instead, as there is room for them.
        max_failures: tries of a trial after the first.
        seconds: end what runs after so long.
        work: what a trial does.
        ends: whether a trial that is done with its work without a summary was ended by the scheduler for good; else it
            is to go on in another experiment.
    """

    def __init__(
        self,
        folder: Path,
        trials: Mapping[str, RunConfig],
        *,
        max_failures: int,
        stop: Stop,
        watch: Watch,
        scheduler: TrialScheduler | None = None,
        searcher: Asked | None = None,
        seconds: float | None = None,
        work: Work = whole_run,
        ends: bool = True,
    ) -> None:
        self._folder, self._trials, self._watch = folder, trials, watch
        self._scheduler, self._searcher = scheduler, searcher
        self._max_failures, self._work, self._ends = max_failures, work, ends
        limits = [config.limits for config in (trials.values() if searcher is None else searcher.examples)]
        patience = max(limit.placement for limit in limits)
        self._keeper = _Keeper(stop, seconds, patience)

    def run(self) -> None:
        """Returns when every trial has ended or failed, or a stop was requested or the time was up.

        Raises:
            PlacementError: for limits.placement seconds nothing ran and nothing could be placed.
        """
        folder, trials = self._folder, dict(self._trials)  # Tune pickles what its functions hold
        trainable = Trainable(self._folder, self._work)

        def trial(config: dict[str, Any]) -> None:  # Tune wants a function
            trainable(config)

        with _quiet_tune():
            tune.Tuner(
                tune.with_resources(trial, lambda config: _group(folder, trials, config["trial"])),
                param_space=None if self._searcher else {"trial": tune.grid_search(list(self._trials))},
                tune_config=tune.TuneConfig(
                    search_alg=self._searcher,
                    num_samples=self._searcher.num_left if self._searcher else 1,
                    scheduler=self._scheduler,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=str(folders.tune_folder(self._folder)),
                    stop=self._keeper,
                    failure_config=tune.FailureConfig(max_failures=self._max_failures),
                    callbacks=[_Told(self._folder, self._watch, self._keeper, self._ends), _Silent()],
                    verbose=0,
                ),
            ).fit()
        self._keeper.check()


class _Keeper(tune.Stopper):
    """Ends the whole experiment: on request, when the time is up, or when nothing can be placed."""

    def __init__(self, stop: Stop, seconds: float | None, patience: float) -> None:
        self._stop, self._patience = stop, patience
        self._end = None if seconds is None else time.monotonic() + seconds
        self._moved = time.monotonic()
        self.starved = self.ending = False

    def alive(self, num_running: int, num_waiting: int) -> None:
        """Look at what runs: trials that wait while none does are late."""
        now = time.monotonic()
        if num_running or not num_waiting:
            self._moved = now
        self.starved = self.starved or now - self._moved > self._patience

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        over = self._end is not None and time.monotonic() > self._end
        self.ending = self.ending or self._stop.requested or self.starved or over
        return self.ending

    def check(self) -> None:
        if self.starved:
            raise PlacementError(
                f"placement: no trial runs and none could be placed within limits.placement {self._patience:g} s; has a "
                "node left? wait for other work to end, or add nodes, and go on with --resume"
            )


class _Silent(TrialProgressCallback):
    """In the place of the one that Tune would add, which prints a line for some trials even when asked to be quiet."""

    def _print(self, msg: str) -> None: ...


class _Told(tune.Callback):
    """Tune's events, by our names; and the record of what the scheduler ended."""

    def __init__(self, folder: Path, watch: Watch, keeper: _Keeper, ends: bool) -> None:
        self._folder, self._watch, self._keeper, self._ends = folder, watch, keeper, ends

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune puts a copy of its settings on disk, which nobody reads

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        running = sum(trial.status == TuneTrial.RUNNING for trial in trials)
        self._keeper.alive(running, sum(trial.status == TuneTrial.PENDING for trial in trials))
        self._watch.tick()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._watch.started(_name(trial))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **_: Any
    ) -> None:
        if STEP in result:
            self._watch.reported(_name(trial), result[STEP], result)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        name = _name(trial)
        found = folders.outcome(self._folder, name)
        if self._ends and not found.ended and not found.error and not self._keeper.ending:
            step = (trial.last_result or {}).get(STEP)
            record = {"reason": f"stopped early by the scheduler at step {step}", STEP: step}
            write_atomic(found.folder / folders.STOPPED, json.dumps(record))
            found = folders.outcome(self._folder, name)
        self._watch.ended(name, found.status)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        name = _name(trial)
        file = folders.trial_folder(self._folder, name) / folders.ERROR
        if not file.exists():  # its process died without a word
            write_atomic(file, json.dumps({"error": _first_line(trial)}))
        self._watch.ended(name, "failed")


def _group(folder: Path, trials: Mapping[str, RunConfig], name: str) -> tune.PlacementGroupFactory:
    """The places of all actors of a trial, and an empty one for its driver."""
    config = trials.get(name) or folders.config_of(folder, name)
    return tune.PlacementGroupFactory([{}, *bundles_of(config)], strategy=config.placement.strategy)


def _name(trial: TuneTrial) -> str:
    return trial.config["trial"]


def _first_line(trial: TuneTrial) -> str:
    error = trial.get_pickled_error()
    return one_line(error) if error else "its process died"


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune's settings, and its loggers silent: what is to be told, `Watch` tells."""
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
