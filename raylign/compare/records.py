"""The record of each run of a comparison: its results and its cost. The report is made from records alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from raylign.compare.costing import Cost
from raylign.compare.samples import Sample
from raylign.config import ALGORITHMS, CollectConfig, OfflineConfig
from raylign.files import write_atomic

RECORDS = "rows.json"
"""Name of the file of records in a comparison's folder."""
_NUMBERS = ("score_before", "score_after", "length_before", "length_after", "finished")


@dataclass(frozen=True)
class Point:
    """A run at one of its steps: cost so far, score and KL."""

    step: int
    device_seconds: float  # of learning, so far
    score: float | None  # on the held-out prompts, by the evaluation reward
    kl: float | None  # on the held-out prompts, nats per completion
    reward: float | None = None  # mean of the run's own reward, on its training prompts
    reward_kl: float | None = None  # on the training prompts


@dataclass(frozen=True)
class StageUse:
    """A stage that a run needed; it is made once for all runs that need it."""

    name: str
    folder: str
    cost: Cost


@dataclass(frozen=True)
class RunRecord:
    """Results and cost of one run."""

    id: str
    method: str
    label: str
    algorithm: str
    setting: dict[str, Any]
    seed: int
    folder: str
    config: str
    error: str | None = None
    score_before: float = math.nan
    score_after: float = math.nan
    kl: float | None = None
    kl_is_bound: bool = False  # for best-of-n: log n - (n - 1) / n
    length_before: float = math.nan
    length_after: float = math.nan
    finished: float = math.nan  # share of completions that ended before the length limit
    learned_reward: bool = False  # trained on a reward model, evaluated by another reward
    optimizer_steps: int = 0
    cost: Cost | None = None
    stages: tuple[StageUse, ...] = ()  # in the order they were made
    curve: tuple[Point, ...] = ()
    before: tuple[Sample, ...] = field(default=(), repr=False)
    after: tuple[Sample, ...] = field(default=(), repr=False)

    @property
    def beta(self) -> float | None:
        return self.setting.get("beta")

    @property
    def done(self) -> bool:
        return self.error is None


def split_reference_pass_cost(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Divide the cost of the reference pass among all offline runs that read its logprobs (see `costing`)."""
    users = {
        record.id for record in records if record.cost and _is_offline(record) and "reference" in record.cost.copies_of
    }
    total = sum(record.cost.reference_device_seconds for record in records if record.cost and record.id in users)
    return [_add_learning_cost(record, total / len(users)) if record.id in users else record for record in records]


def _is_offline(record: RunRecord) -> bool:
    return issubclass(ALGORITHMS.get(record.algorithm, CollectConfig), OfflineConfig)


def _add_learning_cost(record: RunRecord, device_seconds: float) -> RunRecord:
    assert record.cost is not None
    learning = record.cost.learning_device_seconds + device_seconds
    last = replace(record.curve[-1], device_seconds=learning)
    return replace(
        record, cost=replace(record.cost, learning_device_seconds=learning), curve=(*record.curve[:-1], last)
    )


def write_records(file: Path, records: Sequence[RunRecord]) -> None:
    """Write the records as a JSON list."""
    trees = [_without_nan(asdict(record)) for record in records]
    write_atomic(file, json.dumps(trees, indent=1, ensure_ascii=False, allow_nan=False))


def read_records(file: Path) -> list[RunRecord]:
    """Read the records that `write_records` wrote."""
    return [_record(tree) for tree in json.loads(file.read_text())]


def _record(tree: dict[str, Any]) -> RunRecord:
    read: dict[str, Any] = {
        "cost": tree["cost"] and _cost(tree["cost"]),
        "stages": tuple(StageUse(s["name"], s["folder"], _cost(s["cost"])) for s in tree["stages"]),
        "curve": tuple(Point(**point) for point in tree["curve"]),
        "before": tuple(Sample(**sample) for sample in tree["before"]),
        "after": tuple(Sample(**sample) for sample in tree["after"]),
    }
    numbers: dict[str, Any] = {name: math.nan if tree[name] is None else tree[name] for name in _NUMBERS}
    return RunRecord(**tree | read | numbers)


def _without_nan(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN, which JSON does not have, by null."""
    return tree | {name: None if not math.isfinite(tree[name]) else tree[name] for name in _NUMBERS}


def _cost(tree: dict[str, Any]) -> Cost:
    return Cost(**{**tree, "copies_of": tuple(tree["copies_of"])})


def attach_reference_answers(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Add the reference answers to the samples of best-of-n, which a collect run keeps without them."""
    known = {str(s.prompt): s for record in records for s in record.after if s.reference_answer is not None}
    if not known:
        return list(records)

    def with_answers(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        pairs = [(s, known.get(str(s.prompt), s)) for s in samples]
        return tuple(
            replace(s, reference_answer=k.reference_answer, reference_answer_score=k.reference_answer_score)
            for s, k in pairs
        )

    return [replace(record, before=with_answers(record.before), after=with_answers(record.after)) for record in records]
