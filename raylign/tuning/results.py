"""What came of a sweep: a row a trial, the best one's config, and the table that a person reads."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.markup import escape
from rich.table import Table

from raylign.config.draw import Point, Sweep
from raylign.config.load import value_at
from raylign.config.sweep import PBTConfig, is_better
from raylign.files import replacing, write_atomic
from raylign.tracking import read_metrics
from raylign.tuning import folders

PARQUET, BEST = "results.parquet", "best.yaml"
ENDS = ("score_before", "score_after", "kl", "wall_seconds")


@dataclass(frozen=True)
class Row:
    """One trial. What is not known is None."""

    id: str
    values: dict[str, Any]  # what was searched
    status: str  # see `folders.Outcome`
    metric: float | None  # what trials are compared by
    step: int | None  # the last one
    ends: dict[str, float | None]  # of summary.json, by ENDS
    folder: Path
    error: str | None


def rows_of(sweep: Sweep, folder: Path) -> list[Row]:
    """From disk, in the order of the trials."""
    rows = [_row(point, sweep.config.metric, folder) for point in sweep.points]
    return [_at_the_end(row) for row in rows] if isinstance(sweep.config.scheduler, PBTConfig) else rows


def best_of(rows: list[Row], mode: str) -> Row | None:
    """Of the finished trials (the others have no model), the first of the best."""
    best = None
    for row in rows:
        if row.status != "finished" or row.metric is None:
            continue
        if best is None or best.metric is None or is_better(mode, row.metric, best.metric):
            best = row
    return best


def metric_of(folder: Path, name: str, metric: str) -> float | None:
    """What a trial is compared by; None if it has none, or one that is not a number."""
    found = folders.outcome(folder, name)
    return _metric(found, _steps(found), metric)


def write_results(sweep: Sweep, rows: list[Row], folder: Path) -> list[Path]:
    """`results.parquet` and, if a trial finished, `best.yaml`, which `raylign run` takes. Returns what was written."""
    columns: dict[str, Any] = {"trial": [row.id for row in rows], "status": [row.status for row in rows]}
    for key in searched(rows):
        columns[key] = _column([row.values.get(key) for row in rows])
    columns["metric"] = pa.array([row.metric for row in rows], pa.float64())
    columns["step"] = pa.array([row.step for row in rows], pa.int64())
    for name in ENDS:
        columns[name] = pa.array([row.ends[name] for row in rows], pa.float64())
    columns["folder"] = [str(row.folder) for row in rows]
    columns["error"] = pa.array([row.error for row in rows], pa.string())
    about = {"sweep": sweep.config.name, "metric": sweep.config.metric, "mode": sweep.config.mode}
    with replacing(folder / PARQUET) as writing:
        pq.write_table(pa.table(columns).replace_schema_metadata(about), writing)
    best = best_of(rows, sweep.config.mode)
    if best is None:
        return [folder / PARQUET]
    tree = yaml.safe_load((best.folder / folders.CONFIG).read_text())
    head = (
        f"# The best of {len(rows)} trials of the sweep {sweep.config.name}: trial {best.id}, {sweep.config.metric} "
        f"{best.metric:.6g} ({sweep.config.mode}).\n# Run it with: raylign run {BEST}\n"
    )
    if isinstance(sweep.config.scheduler, PBTConfig):
        head += "# These are the values at its end; those on the way, and whose state it went on from, are in population.json.\n"
    tree["name"] = f"{sweep.config.name}-best"
    write_atomic(folder / BEST, head + yaml.safe_dump(tree, sort_keys=False))
    return [folder / PARQUET, folder / BEST]


def searched(rows: list[Row]) -> list[str]:
    """Keys that are searched in any trial."""
    return list(dict.fromkeys(key for row in rows for key in row.values))


def results_table(sweep: Sweep, rows: list[Row]) -> Table:
    """Best first; failed ones last, with what went wrong. Where it is too wide, cells are folded: no digit is lost."""
    config, keys = sweep.config, searched(rows)
    best = best_of(rows, config.mode)
    table = Table("trial", *(escape(short(key, keys)) for key in keys), "status")
    shown = [name for name in ENDS if name != config.metric and any(row.ends[name] is not None for row in rows)]
    for name in (f"{config.metric} ({config.mode})", *shown):
        table.add_column(name.replace("_seconds", " (s)"), justify="right")
    for column in table.columns:
        column.overflow = "fold"
    for row in sorted(rows, key=lambda row: _rank(row, config.mode)):
        cells = [number(row.values.get(key)) for key in keys]
        values = [number(row.metric), *(number(row.ends[name]) for name in shown)]
        status = row.status if row.error is None else f"{row.status}: {row.error[:60]}"
        table.add_row(row.id, *cells, escape(status), *values, style="bold green" if row is best else None)
    return table


def short(key: str, keys: list[str]) -> str:
    """The end of a dotted key by which it is known among the others: `beta`, `kl.coef`."""
    parts = key.split(".")
    for n in range(min(2, len(parts) - 1) or 1, len(parts) + 1):
        end = ".".join(parts[-n:])
        if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def told(values: Mapping[str, Any]) -> str:
    """What was searched, in a line: `beta 0.1, optimizer.learning_rate 0.0005`."""
    return ", ".join(f"{short(key, list(values))} {number(value)}" for key, value in values.items())


def number(value: Any) -> str:
    """For a cell."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value.get("name", str(value)) if isinstance(value, dict) else str(value)
    return escape(os.path.basename(text) if text.endswith((".yaml", ".yml")) else text)


def _row(point: Point, metric: str, folder: Path) -> Row:
    found = folders.outcome(folder, point.id)
    steps = _steps(found)
    summary = found.summary or {}
    ends = {name: summary.get(name) for name in ENDS}
    value = _metric(found, steps, metric)
    step = int(steps[-1]["step"]) if steps else None
    return Row(point.id, point.values, found.status, value, step, ends, found.folder, found.error)


def _steps(found: folders.Outcome) -> list[dict[str, Any]]:
    file = found.folder / "metrics.jsonl"
    return read_metrics(file) if file.exists() else []


def _metric(found: folders.Outcome, steps: list[dict[str, Any]], metric: str) -> float | None:
    if metric in ENDS:
        value = (found.summary or {}).get(metric)
    else:
        value = next((row[metric] for row in reversed(steps) if row.get(metric) is not None), None)
    return None if value is None or math.isnan(value) else value


def _at_the_end(row: Row) -> Row:
    """With the values that the trial has come to have."""
    tree = yaml.safe_load((row.folder / folders.CONFIG).read_text())
    return replace(row, values={key: value_at(tree, key, value) for key, value in row.values.items()})


def _rank(row: Row, mode: str) -> tuple[bool, bool, float]:
    value = row.metric if row.metric is not None else 0.0
    return row.status != "finished", row.metric is None, -value if mode == "max" else value


def _column(values: list[Any]) -> pa.Array:
    """Numbers as numbers; what is mixed, or more than one value, as text."""
    there = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in there):
        return pa.array(values, pa.bool_())
    if all(isinstance(value, int) and not isinstance(value, bool) for value in there):
        return pa.array(values, pa.int64())
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
