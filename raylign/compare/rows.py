"""A row for every run of a comparison: what came of it and what it took. The report is made of rows alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from raylign.compare.best_of import judged_best
from raylign.compare.costing import Cost, cost_of_run
from raylign.compare.plans import PlannedRun
from raylign.config import OFFLINE, CollectConfig, OnlineConfig, RunConfig
from raylign.controllers.roles import evaluation_reward
from raylign.files import write_atomic
from raylign.tasks import score_function
from raylign.tracking import read_metrics

_NUMBERS = ("score_before", "score_after", "length_before", "length_after", "finished")


@dataclass(frozen=True)
class Sample:
    """A completion of a held-out prompt."""

    prompt: str
    completion: str
    score: float | None
    length: int  # tokens
    kl: float | None = None  # log policy - log reference, nats
    reference: str | None = None  # what the data has as a good completion of this prompt
    reference_score: float | None = None


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
class Row:
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


def failed_row(planned: PlannedRun, error: str) -> Row:
    return Row(**_head(planned), folder="", error=error.strip().splitlines()[-1] if error.strip() else "failed")


def read_row(planned: PlannedRun, folder: Path, stages: Sequence[Path]) -> Row:
    """Of a finished run directory.

    Args:
        stages: directories of the runs that it needed, in the order they were made.
    """
    summary = json.loads((folder / "summary.json").read_text())
    config = planned.config
    common = {
        **_head(planned),
        "folder": str(folder),
        "cost": cost_of_run(folder),
        "stages": tuple(StageUse(folder.name, str(folder), cost_of_run(folder)) for folder in stages),
    }
    if isinstance(config.algorithm, CollectConfig):
        n = config.algorithm.samples_per_prompt
        before, after = judged_best(folder, n)
        return Row(
            **common,
            score_before=_mean([s.score for s in before]),
            score_after=_mean([s.score for s in after]),
            kl=math.log(n) - (n - 1) / n,
            kl_is_bound=True,
            length_before=_mean([s.length for s in before]),
            length_after=_mean([s.length for s in after]),
            before=before,
            after=after,
        )
    found = summary["evaluation"]
    return Row(
        **common,
        score_before=summary["score_before"],
        score_after=summary["score_after"],
        kl=summary["kl"],
        length_before=found["before"]["length"],
        length_after=found["after"]["length"],
        finished=found["after"]["finished"],
        learned_reward=config.reward is not None
        and config.reward.type == "model"
        and evaluation_reward(config) != config.reward,
        optimizer_steps=_updates(config, summary["steps"]),
        curve=_curve(config, folder, summary, common["cost"]),
        before=_samples(config, folder / "evaluations" / "before_samples.jsonl"),
        after=_samples(config, folder / "evaluations" / "after_samples.jsonl"),
    )


def share_reference(rows: Sequence[Row]) -> list[Row]:
    """Divide what offline runs held for the logprobs of the reference among all that read them (see `costing`)."""
    users = {row.id for row in rows if row.cost and row.algorithm in OFFLINE and "reference" in row.cost.copies_of}
    total = sum(row.cost.reference_device_seconds for row in rows if row.cost and row.id in users)
    return [_with_more(row, total / len(users)) if row.id in users else row for row in rows]


def _with_more(row: Row, device_seconds: float) -> Row:
    assert row.cost is not None
    learning = row.cost.learning_device_seconds + device_seconds
    last = replace(row.curve[-1], device_seconds=learning)
    return replace(row, cost=replace(row.cost, learning_device_seconds=learning), curve=(*row.curve[:-1], last))


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    trees = [_without_nan(asdict(row)) for row in rows]
    write_atomic(file, json.dumps(trees, indent=1, ensure_ascii=False, allow_nan=False))


def read_rows_file(file: Path) -> list[Row]:
    """What `write_rows` wrote."""
    return [_row(tree) for tree in json.loads(file.read_text())]


def _row(tree: dict[str, Any]) -> Row:
    read: dict[str, Any] = {
        "cost": tree["cost"] and _cost(tree["cost"]),
        "stages": tuple(StageUse(s["name"], s["folder"], _cost(s["cost"])) for s in tree["stages"]),
        "curve": tuple(Point(**point) for point in tree["curve"]),
        "before": tuple(Sample(**sample) for sample in tree["before"]),
        "after": tuple(Sample(**sample) for sample in tree["after"]),
    }
    numbers: dict[str, Any] = {name: math.nan if tree[name] is None else tree[name] for name in _NUMBERS}
    return Row(**tree | read | numbers)


def _without_nan(tree: dict[str, Any]) -> dict[str, Any]:
    """What is not known is null: JSON has no NaN."""
    return tree | {name: None if not math.isfinite(tree[name]) else tree[name] for name in _NUMBERS}


def _cost(tree: dict[str, Any]) -> Cost:
    return Cost(**{**tree, "copies_of": tuple(tree["copies_of"])})


def _head(planned: PlannedRun) -> dict[str, Any]:
    return {
        "id": planned.id,
        "method": planned.method,
        "label": planned.label,
        "algorithm": "best_of_n" if "n" in planned.setting else planned.config.algorithm.name,
        "setting": planned.setting,
        "seed": planned.seed,
        "config": str(planned.file),
    }


def _samples(config: RunConfig, file: Path) -> tuple[Sample, ...]:
    """As the evaluation kept them. Where the data has reference answers, these are scored by the task's own truth."""
    with file.open() as f:
        rows = [json.loads(line) for line in f]
    found = [Sample(row["prompt"], row["completion"], row["score"], row["length"], row.get("kl")) for row in rows]
    columns = [row.get("columns", {}) for row in rows]
    if config.task is None or not rows or any(not isinstance(c.get("reference"), str) for c in columns):
        return tuple(found)
    references = [c["reference"] for c in columns]
    others = {name: [c.get(name) for c in columns] for name in columns[0]}
    scores = score_function(config.task)([s.prompt for s in found], references, **others)
    return tuple(
        replace(sample, reference=reference, reference_score=float(score))
        for sample, reference, score in zip(found, references, scores, strict=True)
    )


def share_references(rows: Sequence[Row]) -> list[Row]:
    """The reference answers also for the samples of best-of-n, which a collect run keeps without them."""
    known = {str(s.prompt): s for row in rows for s in row.after if s.reference is not None}
    if not known:
        return list(rows)

    def named(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        found = [(s, known.get(str(s.prompt), s)) for s in samples]
        return tuple(replace(s, reference=k.reference, reference_score=k.reference_score) for s, k in found)

    return [replace(row, before=named(row.before), after=named(row.after)) for row in rows]


def _curve(config: RunConfig, folder: Path, summary: dict[str, Any], cost: Cost) -> tuple[Point, ...]:
    """From the start to the end; of an offline run these two alone have a score, for it is judged when it has ended."""
    found = summary["evaluation"]
    points = [Point(0, 0.0, summary["score_before"], found["before"]["kl"])]
    if isinstance(config.algorithm, OnlineConfig):
        seconds = summary["stage_seconds"].get("start", 0.0)
        for line in read_metrics(folder / "metrics.jsonl"):
            seconds += line.get("time/step") or 0.0
            points.append(
                Point(
                    line["step"],
                    seconds * cost.devices,
                    line.get("evaluation/score"),
                    line.get("evaluation/kl"),
                    line.get("reward/mean"),
                    line.get("kl/k1"),
                )
            )
    points.append(Point(summary["steps"], cost.learning_device_seconds, summary["score_after"], summary["kl"]))
    return tuple(points)


def _updates(config: RunConfig, steps: int) -> int:
    algorithm = config.algorithm
    return steps * algorithm.epochs * algorithm.minibatches if isinstance(algorithm, OnlineConfig) else steps


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
