"""What Tune runs: one function a trial, in a process that owns the trial's actors and dies with them."""

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

from raylign.config import RunConfig, load_config
from raylign.errors import Interrupted, NonFiniteError, UserError
from raylign.files import write_atomic
from raylign.tracking import Sink
from raylign.tuning import folders

Work = Callable[[RunConfig, Path, PlacementGroup, Sink], Any]
STEP = "step"


class TuneSink(Sink):
    """Hands the metrics of each step to Tune, which answers when it has decided whether the trial goes on."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        tune.report({STEP: step, **metrics})

    def close(self, exit_code: int) -> None: ...


def whole_run(config: RunConfig, folder: Path, group: PlacementGroup, sink: Sink) -> None:
    """A run, or the rest of it."""
    from raylign.controllers.run import run

    run(config, quiet=True, folder=folder, group=group, sinks=[sink])


@dataclass(frozen=True)
class PartOfRun:
    """A run, to the end of a generation."""

    until: int  # the last step

    def __call__(self, config: RunConfig, folder: Path, group: PlacementGroup, sink: Sink) -> None:
        from raylign.controllers.run import run

        with suppress(Interrupted):  # at the last step of the generation: its process gets no signals
            run(config, quiet=True, folder=folder, group=group, sinks=[sink], until=self.until)


@dataclass(frozen=True)
class Trainable:
    """Called by Tune with the trial's id.

    What another try would not mend is written down and not raised, so Tune does not try again.
    """

    folder: Path
    work: Work = whole_run

    def __call__(self, config: dict[str, Any]) -> None:
        place = folders.trial_folder(self.folder, config["trial"])
        error = place / folders.ERROR
        error.unlink(missing_ok=True)
        group = ray.util.get_current_placement_group()
        assert group is not None
        try:
            self.work(load_config(place / folders.CONFIG), place, group, TuneSink())
        except Exception as e:
            write_atomic(error, json.dumps({"error": f"{type(e).__name__}: {e}"}))
            if not isinstance(e, UserError | NonFiniteError):
                raise
