"""Scored completions of held-out prompts, as an evaluation kept them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from raylign.config import RunConfig
from raylign.errors import UserError
from raylign.storage.run_folder import RunFolder
from raylign.tasks import score_function


@dataclass(frozen=True)
class Sample:
    """A scored completion of a held-out prompt."""

    prompt: str
    completion: str
    score: float | None
    length: int  # tokens
    kl: float | None = None  # log policy - log reference, nats
    reference_answer: str | None = None  # reference answer of the data for this prompt
    reference_answer_score: float | None = None


def read_samples(config: RunConfig, run: RunFolder, label: str) -> tuple[Sample, ...]:
    """Read the samples that an evaluation kept; reference answers of the data are scored by the task's ground truth."""
    rows = run.samples(label)
    if rows is None:
        raise UserError(
            f"{run}: the samples of the evaluation {label!r} are missing; delete the folder and run it again"
        )
    samples = [Sample(row["prompt"], row["completion"], row["score"], row["length"], row.get("kl")) for row in rows]
    columns = [row.get("columns", {}) for row in rows]
    if config.task is None or not rows or any(not isinstance(c.get("reference"), str) for c in columns):
        return tuple(samples)
    answers = [c["reference"] for c in columns]
    others = {name: [c.get(name) for c in columns] for name in columns[0]}
    scores = score_function(config.task)([s.prompt for s in samples], answers, **others)
    return tuple(
        replace(sample, reference_answer=answer, reference_answer_score=float(score))
        for sample, answer, score in zip(samples, answers, scores, strict=True)
    )
