"""A sweep on disk, which is all that a later process needs to go on with it.

<folder>/trials/<id>/config.yaml     what the trial is; then everything else of a run directory
                     summary.json    it came to its end
                     stopped.json    the scheduler ended it before that
                     error.json      its last try failed
<folder>/tune/                       Tune's own files, of no use afterwards
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raylign.config import RunConfig, load_config
from raylign.controllers.outputs import output_base
from raylign.controllers.run_folders import SUMMARY, differences
from raylign.errors import UserError
from raylign.files import write_atomic

CONFIG, STOPPED, ERROR = "config.yaml", "stopped.json", "error.json"


@dataclass(frozen=True)
class Outcome:
    """How far a trial has come."""

    folder: Path
    summary: dict[str, Any] | None
    stopped: str | None  # why the scheduler ended it
    error: str | None  # what its last try raised

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do. A failed trial is tried again by who resumes."""
        return self.summary is not None or self.stopped is not None

    @property
    def began(self) -> bool:
        return self.ended or (self.folder / "commits").exists()

    @property
    def status(self) -> str:
        if self.summary is not None:
            return "finished"
        return "stopped early" if self.stopped else "failed" if self.error else "interrupted" if self.began else "new"


def with_absolute_output_dir(config: RunConfig) -> RunConfig:
    """With an `output_dir` that means the same in every process: there are the stages and caches that trials share."""
    return config.model_copy(update={"output_dir": str(output_base(config.output_dir))})


def config_of(folder: Path, name: str) -> RunConfig:
    """What a trial is at present."""
    return load_config(trial_folder(folder, name) / CONFIG)


def trial_folder(folder: Path, name: str) -> Path:
    return folder / "trials" / name


def outcome(folder: Path, name: str) -> Outcome:
    """What is known of a trial."""
    place = trial_folder(folder, name)
    stopped, error = _read(place / STOPPED), _read(place / ERROR)
    return Outcome(
        place, _read(place / SUMMARY), stopped["reason"] if stopped else None, error["error"] if error else None
    )


def prepare(folder: Path, trials: Mapping[str, RunConfig], resume: bool, changed: Collection[str] = ()) -> None:
    """Write the config of every trial into its folder, or see that it is the one that is there.

    Args:
        changed: trials whose config became another one on the way, and is not compared.
    Raises:
        UserError: there are trials and none was to be resumed, or one has another config.
    """
    if not resume and any((folder / "trials").glob(f"*/{CONFIG}")):
        raise UserError(f"{folder}: has trials already; go on with them (--resume), or give another folder")
    for name, config in trials.items():
        file = trial_folder(folder, name) / CONFIG
        if not file.exists():
            write_atomic(file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        for difference in differences(load_config(file), config) if name not in changed else ():
            raise UserError(
                f"trial {name}: {difference} differs from the trial in {file.parent}; resume the sweep with the same "
                "configs, or begin a new one"
            )


def tune_folder(folder: Path) -> Path:
    """A new, empty one."""
    made = folder / "tune"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    return made


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None
