"""Files of an embedded task (data and model), and how they are written."""

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
    """The files of a prepared task; `task:NAME` in a config means `resolve(NAME)`."""

    directory: Path

    def resolve(self, name: str) -> Path:
        """Return the path of `corpus`, `prompts`, `eval_prompts` (JSON lines) or `model` (a Hugging Face folder).

        Raises:
            ConfigError: the task has no file of that name.
        """
        if name not in _FILES:
            raise ConfigError([f"task:{name}: the task has no {name!r}; write one of task:{', task:'.join(_FILES)}"])
        return self.directory / _FILES[name]

    @property
    def complete(self) -> bool:
        """True if all files of the task are in its directory."""
        return all((self.directory / file).exists() for file in _FILES.values())


def write_once(directory: Path, write: Callable[[TaskFiles], None]) -> TaskFiles:
    """Let `write` fill `directory`, completely or not at all; leave a complete directory unchanged.

    Raises:
        UserError: `directory` has other content. Errors of `write` are passed on.
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
        building.chmod(0o755)  # mkdtemp grants access only to the owner
        try:
            os.rename(building, directory)
        except OSError:
            if not files.complete:  # otherwise another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return files


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write rows as JSON lines."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
