"""Reads the record of a finished run from its directory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raylign.compare.best_of import first_and_best
from raylign.compare.costing import Cost, cost_of_run
from raylign.compare.expand import PlannedRun
from raylign.compare.records import Point, RunRecord, StageUse
from raylign.compare.samples import read_samples
from raylign.config import CollectConfig, OnlineConfig, RunConfig
from raylign.storage.run_folder import RunFolder


def failed_record(planned: PlannedRun, error: str) -> RunRecord:
    """Return the record of a run that did not finish, with the last line of its error."""
    return RunRecord(**_head(planned), folder="", error=error.strip().splitlines()[-1] if error.strip() else "failed")


def read_record(planned: PlannedRun, folder: Path, stages: Sequence[Path]) -> RunRecord:
    """Return the record of a finished run, read from its directory.

    Args:
        stages: directories of the stages that it needed, in the order in which they were made.
    """
    run = RunFolder(folder)
    summary = run.summary
    config = planned.config
    common = {
        **_head(planned),
        "folder": str(folder),
        "cost": cost_of_run(folder),
        "stages": tuple(StageUse(folder.name, str(folder), cost_of_run(folder)) for folder in stages),
    }
    if isinstance(config.algorithm, CollectConfig):
        n = config.algorithm.samples_per_prompt
        before, after = first_and_best(folder, n)
        return RunRecord(
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
    return RunRecord(
        **common,
        score_before=summary["score_before"],
        score_after=summary["score_after"],
        kl=summary["kl"],
        length_before=found["before"]["length"],
        length_after=found["after"]["length"],
        finished=found["after"]["finished"],
        learned_reward=config.reward is not None
        and config.reward.type == "model"
        and config.evaluation_reward != config.reward,
        optimizer_steps=_updates(config, summary["steps"]),
        curve=_curve(config, run, summary, common["cost"]),
        before=read_samples(config, run, "before"),
        after=read_samples(config, run, "after"),
    )


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


def _curve(config: RunConfig, run: RunFolder, summary: dict[str, Any], cost: Cost) -> tuple[Point, ...]:
    """Return the run's points from start to end; an offline run is evaluated only at these two."""
    found = summary["evaluation"]
    points = [Point(0, 0.0, summary["score_before"], found["before"]["kl"])]
    if isinstance(config.algorithm, OnlineConfig):
        seconds = summary["section_seconds"].get("start", 0.0)
        for line in run.metrics():
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
