"""Runs that need other runs: `run:` and `task:` paths become real ones, each made once and kept by content hash.

    ppo.yaml --model.path--> sft.yaml --model.path--> task:model
        |--reward.path--> reward_model.yaml --data.path--> preferences.yaml --model.path--> sft.yaml

A stage lives in `<output_dir>/stages/<name>-<hash>`; the hash covers all that decides its outcome, so a stage is done
once for all the runs (and seeds, and trials) that share it, and a changed one is done anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylign.config import CollectConfig, RunConfig
from raylign.config.graph import upstream_configs
from raylign.errors import UserError
from raylign.files import sha256_of
from raylign.storage.outputs import output_base
from raylign.storage.run_folder import MODEL
from raylign.tasks import prepare

_FILES = (".jsonl", ".json", ".parquet", ".py")
_PART = 2**20
_NOT_CONTENT = {"name", "output_dir", "tracking", "limits", "checkpoint", "placement"}


@dataclass(frozen=True)
class Stage:
    """A run config with the runs it needs, by the value that names them."""

    config: RunConfig
    needs: dict[str, Stage]  # "run:/abs/path.yaml" -> its stage
    content: dict[str, str]  # dotted place -> hash of the file, folder or run that is named there

    @property
    def key(self) -> str:
        """Hash of everything that decides the outcome."""
        tree = self.config.model_dump(mode="json", exclude=_NOT_CONTENT)
        for place, digest in self.content.items():
            _set(tree, place, digest)
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Run directory of the stage."""
        return output_base(self.config.output_dir) / "stages" / f"{self.config.name}-{self.key[:12]}"


def build_graph(config: RunConfig, chain: tuple[str, ...] = ()) -> Stage:
    """Read and check every config that a run needs, before anything is executed (see `upstream_configs`).

    Raises:
        ConfigError: a config is wrong; UserError: a config names a file or folder that does not exist.
    """
    for place, value in config.sources():
        local = value.startswith(("/", ".", "~")) or Path(value).suffix in _FILES
        if local and not value.startswith("run:") and not Path(value).expanduser().exists():
            raise UserError(
                f"{place}: no such file or folder: {value} (run {config.name}); check the path (relative paths start "
                "at the working directory)"
            )
    upstream = upstream_configs(config, chain)
    needs = {value: build_graph(needed, (*chain, value)) for value, needed in upstream.items()}
    return Stage(config, needs, _content(config, needs))


def resolve(stage: Stage, execute: Callable[[Stage], Path]) -> RunConfig:
    """Return the stage's config with real paths for `run:` and `task:`.

    Args:
        execute: returns the run directory of a needed stage, which it executes first if necessary.
    """
    config = stage.config
    tree = config.model_dump(mode="json")
    for place, value in config.sources():
        if value.startswith("task:"):
            assert config.task is not None  # RunConfig checks it
            files = prepare(config.task, _task_folder(config))
            _set(tree, place, str(files.resolve(value.removeprefix("task:"))))
        elif value.startswith("run:"):
            needed = stage.needs[value]
            _set(tree, place, str(execute(needed) / output_name(needed.config)))
    return RunConfig.model_validate(tree)


def output_name(config: RunConfig) -> str:
    """Return the name of the result in the run directory: the dataset of a collect run, else a Hugging Face folder."""
    return config.algorithm.file_name if isinstance(config.algorithm, CollectConfig) else MODEL


def _task_folder(config: RunConfig) -> Path:
    assert config.task is not None
    digest = hashlib.sha256(config.task.model_dump_json().encode()).hexdigest()[:12]
    return output_base(config.output_dir) / "tasks" / f"{config.task.name}-{digest}"


def _content(config: RunConfig, needs: dict[str, Stage]) -> dict[str, str]:
    content = {}
    for place, value in config.sources():
        path = Path(value).expanduser()
        if value in needs:
            content[place] = f"run:{needs[value].key}"
        elif path.is_file():
            content[place] = f"sha256:{sha256_of(path)}"
        elif path.is_dir():
            content[place] = _folder_hash(path)
    for place, reward in (
        ("reward", config.reward),
        ("evaluation.reward", config.evaluation and config.evaluation.reward),
    ):
        if reward and reward.type == "function":
            source, _, name = reward.function.rpartition(":")
            if Path(source).is_file():
                content[f"{place}.function"] = f"sha256:{sha256_of(Path(source))}:{name}"
    return content


def _folder_hash(folder: Path) -> str:
    """Return the hash of the names, sizes, first and last MiB of all files: other weights differ there, and it is fast."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder)}\0{size}\0".encode())
        with file.open("rb") as f:
            digest.update(f.read(_PART))
            f.seek(max(0, size - _PART))
            digest.update(f.read(_PART))
    return f"folder:{digest.hexdigest()}"


def _set(tree: dict[str, Any], place: str, value: str) -> None:
    *parents, last = place.split(".")
    for parent in parents:
        tree = tree[parent]
    tree[last] = value
