"""Exact score and KL of policies on the task `exact`, and the best possible ones: computed, not sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from raylign.compare.records import RunRecord
from raylign.config import ExactTask
from raylign.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from raylign.tasks.exact_optimum import Enumeration, Float64Array


def with_exact_scores(record: RunRecord) -> RunRecord:
    """Return the record with the exact score and KL of its policy; unchanged if its task is not exact."""
    measured, model = exact_reference(record.folder), RunFolder(Path(record.folder)).model
    if measured is None or not model.is_dir():
        return record
    from raylign.tasks.exact_optimum import evaluate, log_probabilities

    enumeration, ref = measured
    policy = log_probabilities(str(model), enumeration)
    value = evaluate(policy, ref, enumeration.rewards, record.beta or 1.0)
    start = evaluate(ref, ref, enumeration.rewards, 1.0)
    return replace(record, score_before=start.reward, score_after=value.reward, kl=value.kl)


def optimum_curve(records: Sequence[RunRecord]) -> list[tuple[float, float]]:
    """Return (KL, score) of the best policies over many betas; empty if the task is not exact."""
    first = next((record for record in records if record.beta and exact_reference(record.folder)), None)
    return curve_of(first.folder, [record.beta for record in records if record.beta]) if first else []


def curve_of(folder: str, betas: Sequence[float]) -> list[tuple[float, float]]:
    """Return (KL, score) of the best policies of a run's task, over a wider range than these betas.

    No policy can be above this curve.
    """
    import numpy as np

    from raylign.tasks.exact_optimum import frontier

    measured = exact_reference(folder)
    assert measured is not None
    enumeration, ref = measured
    return frontier(ref, enumeration.rewards, np.geomspace(min(betas) / 3, max(betas) * 30, 60).tolist())


def exact_reference(folder: str) -> tuple[Enumeration, Float64Array] | None:
    """Return all completions of a run's task, and their logprobs under its reference.

    None for other tasks and for runs that are not on this machine.
    """
    run = RunFolder(Path(folder))
    if not folder or not run.has_resolved:
        return None
    config = run.resolved
    if not isinstance(config.task, ExactTask):
        return None
    return _reference_logprobs(config.task.model_dump_json(), (config.reference or config.model).path)


@cache
def _reference_logprobs(task: str, reference: str) -> tuple[Enumeration, Float64Array]:
    """List the completions of a task and their logprobs, once for all runs of a comparison."""
    from raylign.tasks.exact_optimum import Enumeration, log_probabilities

    enumeration = Enumeration.of(ExactTask.model_validate_json(task))
    return enumeration, log_probabilities(reference, enumeration)
