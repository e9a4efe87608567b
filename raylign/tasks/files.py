"""Where an embedded task put its data and its untrained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raylign.errors import ConfigError

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
