"""Files of a sweep: `--resume` needs nothing else.

<folder>/trials/<id>/                the trial's run directory (see `storage.run_folder`), and in it:
                     stopped.json    written when the scheduler stopped it early
                     error.json      written when its last try failed
<folder>/tune/                       Tune's own files, not needed afterwards
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylign.config import RunConfig
from raylign.errors import UserError
from raylign.storage.changes import differences
from raylign.storage.outputs import output_base
from raylign.storage.run_folder import RunFolder

STOPPED, ERROR = "stopped.json", "error.json"  # of a trial, beside what a run writes


@dataclass(frozen=True)
class Outcome:
    """State of a trial, read from its folder."""

    folder: Path
    summary: dict[str, Any] | None
    stopped: str | None  # why the scheduler stopped it
    error: str | None  # the error of its last try

    @property
    def ended(self) -> bool:
        """True if the trial finished or was stopped early. A failed trial has not ended: `--resume` tries it again."""
        return self.summary is not None or self.stopped is not None

    @property
    def began(self) -> bool:
        """True if the trial has ended or has a commit to continue from."""
        return self.ended or RunFolder(self.folder).has_commits

    @property
    def status(self) -> str:
        """One of `finished`, `stopped early`, `failed`, `interrupted`, `new`."""
        if self.summary is not None:
            return "finished"
        return "stopped early" if self.stopped else "failed" if self.error else "interrupted" if self.began else "new"


def with_absolute_output_dir(config: RunConfig) -> RunConfig:
    """Make `output_dir` absolute, so that all processes share the same stages and caches."""
    return config.model_copy(update={"output_dir": str(output_base(config.output_dir))})


def load_trial_config(folder: Path, name: str) -> RunConfig:
    """Load the current config of a trial, which PBT may have changed."""
    return RunFolder(trial_folder(folder, name)).config


def trial_folder(folder: Path, name: str) -> Path:
    """Return the run directory of a trial."""
    return folder / "trials" / name


def read_outcome(folder: Path, name: str) -> Outcome:
    """Read from a trial's folder how far it has got."""
    place = trial_folder(folder, name)
    stopped, error = _read(place / STOPPED), _read(place / ERROR)
    run = RunFolder(place)
    return Outcome(
        place,
        run.summary if run.has_ended else None,
        stopped["reason"] if stopped else None,
        error["error"] if error else None,
    )


def prepare(folder: Path, trials: Mapping[str, RunConfig], resume: bool, changed: Collection[str] = ()) -> None:
    """Write the config of every trial into its folder, or check that the config there is the same.

    Args:
        folder: the sweep's folder.
        trials: configs by trial id.
        resume: accept trials that exist already.
        changed: trials whose config PBT has changed, which are not compared.
    Raises:
        UserError: there are trials but `resume` is False, or a trial has another config.
    """
    if not resume and any(RunFolder(trial).has_config for trial in (folder / "trials").glob("*")):
        raise UserError(f"{folder}: has trials already; continue them with --resume, or choose another folder")
    for name, config in trials.items():
        trial = RunFolder(trial_folder(folder, name))
        if not trial.has_config:
            trial.write_config(config)
        for difference in differences(trial.config, config) if name not in changed else ():
            raise UserError(
                f"trial {name}: {difference} differs from the trial in {trial}; resume the sweep with the same "
                "configs, or start a new one"
            )


def tune_folder(folder: Path) -> Path:
    """Make an empty folder for Tune's own files."""
    tune_folder = folder / "tune"
    shutil.rmtree(tune_folder, ignore_errors=True)
    tune_folder.mkdir(parents=True)
    return tune_folder


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None
