"""The run directory: the one place that knows the names of its files and folders.

<output_dir>/<name>/
    config.yaml         what the user wrote, completed with defaults
    resolved.yaml       the same with real paths instead of `run:` and `task:`
    content.json        a hash of what those paths held when the run began
    metrics.jsonl       a line per step
    commits/            what a resumed run starts from (see `commits`)
    parts/              the steps of a collect run, until its dataset is written
    evaluations/        scores and samples of the held-out prompts, before and after training
    tensorboard/        event files, if the config asks for them
    model/ adapter/     the result: a Hugging Face folder, and the adapter if one was trained
    summary.json        written last: a run directory that has one has ended
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raylign.config import RunConfig, load_config
from raylign.errors import ConfigError, UserError
from raylign.files import write_atomic
from raylign.storage.changes import differences
from raylign.storage.commits import MERGED, POLICY, Commit, Commits, newest_step
from raylign.storage.metrics_log import read_metrics
from raylign.storage.outputs import fresh_folder, newest_folder

MODEL = "model"  # what a run makes, unless it makes a dataset
_CONFIG, _RESOLVED, _CONTENT, _SUMMARY = "config.yaml", "resolved.yaml", "content.json", "summary.json"
_ADAPTER, _COMMITS, _PARTS, _EVALUATIONS = "adapter", "commits", "parts", "evaluations"


@dataclass(frozen=True)
class RunFolder:
    """A run directory; it need not exist yet."""

    path: Path

    @classmethod
    def newest(cls, base: Path) -> RunFolder | None:
        """Return the newest run directory of this name, or None."""
        newest = newest_folder(base)
        return None if newest is None else cls(newest)

    @classmethod
    def fresh(cls, base: Path) -> RunFolder:
        """Return a run directory of this name that does not exist yet."""
        return cls(fresh_folder(base))

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Return whether anything was written."""
        return self.path.exists()

    # What the run is.

    @property
    def has_config(self) -> bool:
        return (self.path / _CONFIG).exists()

    @property
    def config(self) -> RunConfig:
        """The config that the user wrote, completed with defaults. Raises: see `_read_config`."""
        return _read_config(self.path / _CONFIG)

    @property
    def has_resolved(self) -> bool:
        return (self.path / _RESOLVED).is_file()

    @property
    def resolved(self) -> RunConfig:
        """The config with real paths in it. Raises: see `_read_config`."""
        return _read_config(self.path / _RESOLVED)

    def write_config(self, config: RunConfig) -> None:
        """Write the config as the user gave it."""
        _write_config(self.path / _CONFIG, config)

    def write_configs(self, config: RunConfig, resolved: RunConfig, content: dict[str, str]) -> None:
        """Write what the run is.

        Args:
            content: hash of what each path in the config holds, by the dotted key of that path.
        """
        self.write_config(config)
        _write_config(self.path / _RESOLVED, resolved)
        _write_json(self.path / _CONTENT, content)

    def forget_content(self) -> None:
        """Drop the hashes of the inputs, because the config is no longer the one they were taken for."""
        (self.path / _CONTENT).unlink(missing_ok=True)

    def check_unchanged(self, config: RunConfig, content: dict[str, str]) -> None:
        """Refuse to continue a run whose config, or the files and runs it names, have changed.

        Raises:
            UserError: one line with the dotted key that changed.
        """
        if not self.has_config:
            return
        for difference in differences(self.config, config):
            raise UserError(
                f"{difference}: differs from the run in {self}; resume with the same config, or leave out --resume to "
                "start a new run"
            )
        file = self.path / _CONTENT
        before = json.loads(file.read_text()) if file.exists() else {}
        values = dict(config.sources())
        for key, digest in content.items():
            if before.get(key, digest) != digest:
                raise UserError(
                    f"{key}: {values.get(key, 'the function')} is not what it was when the run in {self} began; put it "
                    "back, or leave out --resume to start a new run"
                )

    # What came of it.

    @property
    def has_ended(self) -> bool:
        """True if the run finished; nothing is left to do."""
        return (self.path / _SUMMARY).exists()

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of a finished run."""
        return json.loads((self.path / _SUMMARY).read_text())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        _write_json(self.path / _SUMMARY, summary)

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of every step so far, in order (see `read_metrics`)."""
        return read_metrics(self.metrics_file) if self.metrics_file.exists() else []

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files."""
        return self.path / "tensorboard"

    @property
    def parts(self) -> Path:
        """Folder with a file for each finished step of a collect run."""
        return self.path / _PARTS

    @property
    def model(self) -> Path:
        """Hugging Face folder of the model that the run made."""
        return self.path / MODEL

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapter, as peft reads it."""
        return self.path / _ADAPTER

    def dataset(self, file_name: str) -> Path:
        """Return the file of the dataset that a collect run makes."""
        return self.path / file_name

    # Evaluations, by label: "before" and "after" training.

    def evaluation(self, label: str) -> dict[str, Any] | None:
        """Return the numbers of an evaluation, or None if it was not made yet."""
        file = self._evaluation_file(label)
        return json.loads(file.read_text()) if file.exists() else None

    def samples(self, label: str) -> list[dict[str, Any]] | None:
        """Return the completions that an evaluation kept, or None if it kept none."""
        file = self._samples_file(label)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else None

    def write_evaluation(
        self, label: str, numbers: dict[str, Any], samples: list[dict[str, Any]] | None = None
    ) -> None:
        """Keep an evaluation. The numbers are written last, so an evaluation that has them is complete."""
        if samples is not None:
            lines = "".join(json.dumps(sample, ensure_ascii=False, default=str) + "\n" for sample in samples)
            write_atomic(self._samples_file(label), lines)
        write_atomic(self._evaluation_file(label), json.dumps(numbers))

    def _evaluation_file(self, label: str) -> Path:
        return self.path / _EVALUATIONS / f"{label}.json"

    def _samples_file(self, label: str) -> Path:
        return self.path / _EVALUATIONS / f"{label}_samples.jsonl"

    # Commits, and the model that is made of the last one.

    @property
    def has_commits(self) -> bool:
        """True if training began."""
        return (self.path / _COMMITS).exists()

    @property
    def newest_step(self) -> int:
        """Step of the newest commit, 0 without one; the commit is not verified."""
        return newest_step(self.path / _COMMITS)

    def commits(self, keep: int) -> Commits:
        """Return the commits of the run, of which the newest `keep` are kept."""
        return Commits(self.path / _COMMITS, keep)

    def publish(self, commit: Commit, has_adapter: bool) -> None:
        """Make `model/` of a commit: its model as a plain Hugging Face folder (hard links, no copy).

        If an adapter was trained: the adapter merged into its base, and the adapter itself in `adapter/`.
        """
        for role, name in [(MERGED, MODEL), (POLICY, _ADAPTER)] if has_adapter else [(POLICY, MODEL)]:
            writing, final = self.path / f".{name}-writing", self.path / name
            shutil.rmtree(writing, ignore_errors=True)
            shutil.copytree(commit.role(role), writing, ignore=shutil.ignore_patterns("state"), copy_function=_link)
            shutil.rmtree(final, ignore_errors=True)
            writing.rename(final)


def _read_config(file: Path) -> RunConfig:
    """Read a config that a run wrote.

    Raises:
        UserError: this raylign does not read it any more, in one line.
    """
    try:
        return load_config(file)
    except ConfigError as e:
        more = f" (and {len(e.problems) - 1} more)" if len(e.problems) > 1 else ""
        raise UserError(
            f"{e.problems[0]}{more}; the run was written by another raylign or its config was edited: continue it with that raylign, or start a new run"
        ) from None


def _write_config(file: Path, config: RunConfig) -> None:
    write_atomic(file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _write_json(file: Path, value: Any) -> None:
    write_atomic(file, json.dumps(value, indent=2))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
