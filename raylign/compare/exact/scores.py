"""On the exact task nothing needs to be sampled: score and KL of every policy, and the best there can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raylign.compare.records import RunRecord
from raylign.config import ExactTask, load_config


def without_noise(row: RunRecord) -> RunRecord:
    """The row with the exact score and KL of its policy, where its task is exact and it has a policy."""
    found = _task_of(row)
    if found is None or not (Path(row.folder) / "model").is_dir():
        return row
    from raylign.tasks.exact_optimum import Enumeration, evaluate, log_probabilities

    task, reference = found
    enumeration = Enumeration.of(task)
    ref = log_probabilities(reference, enumeration)
    policy = log_probabilities(str(Path(row.folder) / "model"), enumeration)
    value = evaluate(policy, ref, enumeration.rewards, row.beta or 1.0)
    start = evaluate(ref, ref, enumeration.rewards, 1.0)
    return replace(row, score_before=start.reward, score_after=value.reward, kl=value.kl)


def optimum_curve(rows: Sequence[RunRecord]) -> list[tuple[float, float]]:
    """(KL, score) of the best policies over many betas; nothing where the task is not exact."""
    first = next((row for row in rows if _task_of(row) and row.beta), None)
    found = first and _task_of(first)
    if not found:
        return []
    import numpy as np

    from raylign.tasks.exact_optimum import Enumeration, frontier, log_probabilities

    task, reference = found
    enumeration = Enumeration.of(task)
    betas = [row.beta for row in rows if row.beta]
    wide = np.geomspace(min(betas) / 3, max(betas) * 30, 60)
    return frontier(log_probabilities(reference, enumeration), enumeration.rewards, wide.tolist())


def _task_of(row: RunRecord) -> tuple[ExactTask, str] | None:
    """The task, and the folder of the reference; None for other tasks and for runs that are not on this machine."""
    file = Path(row.folder) / "resolved.yaml"
    if not row.folder or not file.is_file():
        return None
    config = load_config(file)
    if not isinstance(config.task, ExactTask):
        return None
    return config.task, (config.reference or config.model).path
