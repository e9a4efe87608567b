"""The function that Tune runs for each trial, in a process that owns the trial's actors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import PlacementGroup

from raylign.config import RunConfig
from raylign.errors import Interrupted, NonFiniteError, UserError
from raylign.files import write_atomic
from raylign.storage.run_folder import RunFolder
from raylign.tracking import Sink
from raylign.tuning import folders

Work = Callable[[RunConfig, Path, PlacementGroup, Sink], Any]
STEP = "step"


class TuneSink(Sink):
    """Reports the metrics of each step to Tune, and blocks until Tune has decided whether the trial continues."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        tune.report({STEP: step, **metrics})

    def close(self, exit_code: int) -> None: ...


def run_to_end(config: RunConfig, folder: Path, group: PlacementGroup, sink: Sink) -> None:
    """Execute a run, or continue it from its last commit."""
    from raylign.controllers.run import run

    run(config, quiet=True, folder=folder, group=group, sinks=[sink])


@dataclass(frozen=True)
class RunUntil:
    """Executes or continues a run until the end of a generation."""

    until: int  # the last step

    def __call__(self, config: RunConfig, folder: Path, group: PlacementGroup, sink: Sink) -> None:
        from raylign.controllers.run import run

        with suppress(Interrupted):  # raised at the last step of the generation; this process gets no signals
            run(config, quiet=True, folder=folder, group=group, sinks=[sink], until=self.until)


@dataclass(frozen=True)
class Trainable:
    """Runs one trial of a sweep folder; Tune calls it with the trial's id.

    Every error is written to the trial's folder. Errors that another try would repeat (`UserError`, `NonFiniteError`)
    are not raised, so that Tune does not try again.
    """

    folder: Path
    work: Work = run_to_end

    def __call__(self, config: dict[str, Any]) -> None:
        trial_folder = folders.trial_folder(self.folder, config["trial"])
        error_file = trial_folder / folders.ERROR
        error_file.unlink(missing_ok=True)
        group = ray.util.get_current_placement_group()
        assert group is not None
        try:
            self.work(RunFolder(trial_folder).config, trial_folder, group, TuneSink())
        except Exception as e:
            write_atomic(error_file, json.dumps({"error": f"{type(e).__name__}: {e}"}))
            if not isinstance(e, UserError | NonFiniteError):
                raise
