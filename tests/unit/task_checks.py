"""What every embedded task with a word model must hold."""

from __future__ import annotations

from pathlib import Path

import torch

from raylign.config.task import TaskConfig
from raylign.tasks import prepare
from raylign.tasks.files import TaskFiles


def check_same_bytes(task: TaskConfig, files: TaskFiles, folder: Path) -> None:
    """The same task makes the same bytes, and another seed others; torch's own random state is left alone.

    Args:
        files: of `task`, made before.
    """
    state = torch.random.get_rng_state()
    again = prepare(task, folder / "again")
    assert torch.equal(torch.random.get_rng_state(), state)
    other = prepare(task.model_copy(update={"seed": 1}), folder / "other")
    for name in ("corpus", "prompts", "eval_prompts"):
        assert again.resolve(name).read_bytes() == files.resolve(name).read_bytes()
        assert other.resolve(name).read_bytes() != files.resolve(name).read_bytes()
    weights = [f.resolve("model").joinpath("model.safetensors").read_bytes() for f in (files, again, other)]
    assert weights[0] == weights[1] != weights[2]
