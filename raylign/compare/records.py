"""A row for every run of a comparison: what came of it and what it took. The report is made of rows alone."""

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

_NUMBERS = ("score_before", "score_after", "length_before", "length_after", "finished")


@dataclass(frozen=True)
class Point:
    """Where a run stood on the way."""

    step: int
    device_seconds: float  # of learning, so far
    score: float | None  # on the held-out prompts, by the reward that judges
    kl: float | None  # there, nats per completion
    reward: float | None = None  # mean of the run's own reward, on its training prompts
    reward_kl: float | None = None  # there


@dataclass(frozen=True)
class StageUse:
    """A run that another one needed; it is made once for all that need it."""

    name: str
    folder: str
    cost: Cost


@dataclass(frozen=True)
class RunRecord:
    """One run."""

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
    kl_is_bound: bool = False  # of best-of-n: log n - (n - 1) / n
    length_before: float = math.nan
    length_after: float = math.nan
    finished: float = math.nan  # share of completions that ended by themselves
    learned_reward: bool = False  # what it learned from is a model, and another reward judges
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


def split_reference_pass_cost(rows: Sequence[RunRecord]) -> list[RunRecord]:
    """Divide what offline runs held for the logprobs of the reference among all that read them (see `costing`)."""
    users = {row.id for row in rows if row.cost and _is_offline(row) and "reference" in row.cost.copies_of}
    total = sum(row.cost.reference_device_seconds for row in rows if row.cost and row.id in users)
    return [_with_more(row, total / len(users)) if row.id in users else row for row in rows]


def _is_offline(row: RunRecord) -> bool:
    return issubclass(ALGORITHMS.get(row.algorithm, CollectConfig), OfflineConfig)


def _with_more(row: RunRecord, device_seconds: float) -> RunRecord:
    assert row.cost is not None
    learning = row.cost.learning_device_seconds + device_seconds
    last = replace(row.curve[-1], device_seconds=learning)
    return replace(row, cost=replace(row.cost, learning_device_seconds=learning), curve=(*row.curve[:-1], last))


def write_records(file: Path, rows: Sequence[RunRecord]) -> None:
    trees = [_without_nan(asdict(row)) for row in rows]
    write_atomic(file, json.dumps(trees, indent=1, ensure_ascii=False, allow_nan=False))


def read_records(file: Path) -> list[RunRecord]:
    """What `write_records` wrote."""
    return [_row(tree) for tree in json.loads(file.read_text())]


def _row(tree: dict[str, Any]) -> RunRecord:
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
    """What is not known is null: JSON has no NaN."""
    return tree | {name: None if not math.isfinite(tree[name]) else tree[name] for name in _NUMBERS}


def _cost(tree: dict[str, Any]) -> Cost:
    return Cost(**{**tree, "copies_of": tuple(tree["copies_of"])})


def attach_reference_answers(rows: Sequence[RunRecord]) -> list[RunRecord]:
    """The reference answers also for the samples of best-of-n, which a collect run keeps without them."""
    known = {str(s.prompt): s for row in rows for s in row.after if s.reference is not None}
    if not known:
        return list(rows)

    def named(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        found = [(s, known.get(str(s.prompt), s)) for s in samples]
        return tuple(replace(s, reference=k.reference, reference_score=k.reference_score) for s, k in found)

    return [replace(row, before=named(row.before), after=named(row.after)) for row in rows]
