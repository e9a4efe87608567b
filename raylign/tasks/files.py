"""Where an embedded task put its data and its model, and how they get there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from raylign.errors import ConfigError, UserError

_FILES = {
    "corpus": "corpus.jsonl",
    "prompts": "prompts.jsonl",
    "eval_prompts": "eval_prompts.jsonl",
    "model": "model",
}


@dataclass(frozen=True)
class TaskFiles:
    """A prepared task: `task:NAME` in a config stands for `resolve(NAME)`."""

    directory: Path

    def resolve(self, name: str) -> Path:
        """Path of `corpus`, `prompts`, `eval_prompts` (JSON lines) or `model` (a Hugging Face folder).

        Raises:
            ConfigError: the task has nothing of that name.
        """
        if name not in _FILES:
            raise ConfigError([f"task:{name}: the task has no {name!r}; write one of task:{', task:'.join(_FILES)}"])
        return self.directory / _FILES[name]

    @property
    def complete(self) -> bool:
        """True if everything of the task is in its directory."""
        return all((self.directory / file).exists() for file in _FILES.values())


def write_once(directory: Path, write: Callable[[TaskFiles], None]) -> TaskFiles:
    """What `write` writes, under `directory`: whole or not at all, and as it is if it is there already.

    Raises:
        UserError: `directory` holds something else. What `write` raises goes on to the caller.
    """
    files = TaskFiles(directory)
    if files.complete:
        return files
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory}: is not empty and not a prepared task; remove it or choose another directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        write(TaskFiles(building))
        building.chmod(0o755)  # mkdtemp lets only its owner in
        try:
            os.rename(building, directory)
        except OSError:
            if not files.complete:  # otherwise another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return files


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """JSON lines."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
