"""Win rates of a run's held-out completions against the reference answers of its prompts, from the run's files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylign.compare.win_rate import WinRate, length_controlled_win_rate, win_rate
from raylign.errors import UserError


@dataclass(frozen=True)
class AgainstReferences:
    """Completions and references of the same prompts, both scored by the same function. Lengths are in words."""

    rate: WinRate
    at_equal_length: WinRate
    score: float  # mean over the completions
    reference_score: float
    length: float
    reference_length: float
    num_left_out: int  # completions without a score


def read_samples(run_folder: Path, label: str = "after") -> list[dict[str, Any]]:
    """The held-out completions that an evaluation kept (`evaluation.keep_samples`), in the order of the prompts.

    Raises:
        UserError: the run has no such evaluation, or kept nothing of it.
    """
    file = run_folder / "evaluations" / f"{label}_samples.jsonl"
    if not file.exists():
        raise UserError(f"{file}: is not there; give the run an evaluation section, or another label")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if not samples:
        raise UserError(f"{file}: holds no completion; set evaluation.keep_samples to the number of held-out prompts")
    return samples


def against_references(
    samples: Sequence[dict[str, Any]],
    score: Callable[..., Sequence[float]],
    *,
    column: str = "reference",
    confidence: float = 0.95,
    seed: int = 0,
) -> AgainstReferences:
    """How often the completions beat the references.

    Args:
        samples: see `read_samples`; their scores are taken as they are.
        score: what scored them, for the references: `raylign.tasks.score_function(task)` for an embedded task.
        column: of the prompts, that holds the reference.
    Raises:
        UserError: no such column, or nothing to compare.
    """
    if any(sample.get("columns", {}).get(column) is None for sample in samples):
        known = sorted({name for sample in samples for name in sample.get("columns", {})})
        found = f"the columns kept are {', '.join(known)}" if known else "no columns were kept"
        raise UserError(f"a held-out prompt has no {column!r} to compare with; {found}")
    scored = [sample for sample in samples if sample["score"] is not None]
    if not scored:
        raise UserError("no held-out completion has a score; look at the evaluation's reward")
    references = [str(sample["columns"][column]) for sample in scored]
    columns = {name: [sample["columns"].get(name) for sample in scored] for name in scored[0]["columns"]}
    theirs = [float(x) for x in score(prompts=[s["prompt"] for s in scored], completions=references, **columns)]
    ours = [float(sample["score"]) for sample in scored]
    lengths = [float(len(sample["completion"].split())) for sample in scored]
    reference_lengths = [float(len(text.split())) for text in references]
    return AgainstReferences(
        rate=win_rate(ours, theirs, confidence=confidence, seed=seed),
        at_equal_length=length_controlled_win_rate(
            ours, theirs, lengths, reference_lengths, confidence=confidence, seed=seed
        ),
        score=sum(ours) / len(ours),
        reference_score=sum(theirs) / len(theirs),
        length=sum(lengths) / len(lengths),
        reference_length=sum(reference_lengths) / len(reference_lengths),
        num_left_out=len(samples) - len(scored),
    )
