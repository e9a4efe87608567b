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

from raylign.config import RunConfig
from raylign.config.graph import upstream_configs
from raylign.controllers.collect import PREFERENCES
from raylign.tasks import prepare

MODEL = "model"
_NOT_CONTENT = {"name", "output_dir", "tracking", "limits", "checkpoint", "placement"}


@dataclass(frozen=True)
class Stage:
    """A run config with the runs it needs, by the value that names them."""

    config: RunConfig
    needs: dict[str, Stage]  # "run:/abs/path.yaml" -> its stage
    key: str  # hash of the content

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir).resolve() / "stages" / f"{self.config.name}-{self.key[:12]}"


def plan(config: RunConfig, chain: tuple[str, ...] = ()) -> Stage:
    """Read and check every config that a run needs, before anything is executed (see `upstream_configs`)."""
    upstream = upstream_configs(config, chain)
    needs = {value: plan(needed, (*chain, value)) for value, needed in upstream.items()}
    return Stage(config, needs, _key(config, needs))


def resolve(stage: Stage, execute: Callable[[Stage], Path]) -> RunConfig:
    """The stage's config with every `run:` and `task:` path replaced; `execute` runs a needed stage, if it must."""
    config = stage.config
    tree = config.model_dump(mode="json")
    for place, value in config.sources():
        if value.startswith("task:"):
            assert config.task is not None  # RunConfig checks it
            files = prepare(config.task, _task_folder(config))
            _set(tree, place, str(files.resolve(value.removeprefix("task:"))))
        elif value.startswith("run:"):
            made = execute(stage.needs[value])
            _set(tree, place, str(made / (PREFERENCES if place.endswith("data.path") else MODEL)))
    return RunConfig.model_validate(tree)


def _task_folder(config: RunConfig) -> Path:
    assert config.task is not None
    digest = hashlib.sha256(config.task.model_dump_json().encode()).hexdigest()[:12]
    return Path(config.output_dir).resolve() / "tasks" / f"{config.task.name}-{digest}"


def _key(config: RunConfig, needs: dict[str, Stage]) -> str:
    tree = config.model_dump(mode="json", exclude=_NOT_CONTENT)
    for place, value in config.sources():
        if value in needs:
            _set(tree, place, f"run:{needs[value].key}")
        elif Path(value).is_file():
            with Path(value).open("rb") as f:
                _set(tree, place, f"sha256:{hashlib.file_digest(f, 'sha256').hexdigest()}")
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _set(tree: dict[str, Any], place: str, value: str) -> None:
    *parents, last = place.split(".")
    for parent in parents:
        tree = tree[parent]
    tree[last] = value
