"""A sweep of the smallest runs there are: supervised, one actor each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.integration.small_runs import CONFIGS, TASK

RATES = [5e-3, 1e-3, 2e-4]
SAME = ("trial", "status", "algorithm.optimizer.learning_rate", "metric", "step")  # whatever happens on the way


def write_sweep(folder: Path, name: str, steps: int, rates: list[float], **changes: Any) -> Path:
    """A sweep over the learning rate, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    algorithm = CONFIGS["sft"]["algorithm"] | {"max_steps": steps, "epochs": 100, "batch_size": 8}
    run = {
        "name": "sft",
        "output_dir": str(folder / "runs"),
        "task": TASK,
        **CONFIGS["sft"],
        "algorithm": algorithm,
        "checkpoint": {"every_steps": 2},
    }
    (folder / "sft.yaml").write_text(yaml.safe_dump(run))
    sweep = {
        "name": name,
        "run": "sft.yaml",
        "search": {"algorithm.optimizer.learning_rate": {"grid": rates}},
        "metric": "sft/loss",
        "mode": "min",
        **changes,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(sweep))
    return file


def table(folder: Path) -> list[dict[str, Any]]:
    """The rows of results.parquet, less what is measured in seconds."""
    return pq.read_table(folder / "results.parquet").select(SAME).to_pylist()
