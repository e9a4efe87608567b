"""Results of a sweep: one record per trial, the config of the best trial, and the table for the terminal."""

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

from raylign.config.load import value_at
from raylign.config.search_space import Sweep, TrialSpec
from raylign.config.sweep import PBTConfig, is_better
from raylign.files import replacing, write_atomic
from raylign.storage.run_folder import RunFolder
from raylign.tuning import folders

PARQUET, BEST = "results.parquet", "best.yaml"
SUMMARY_METRICS = ("score_before", "score_after", "kl", "wall_seconds")


@dataclass(frozen=True)
class TrialRecord:
    """Result of one trial; values that are not known are None."""

    id: str
    values: dict[str, Any]  # of the searched keys
    status: str  # see `folders.Outcome`
    metric: float | None  # the metric that trials are compared by
    step: int | None  # the last step
    summary_metrics: dict[str, float | None]  # from summary.json, by SUMMARY_METRICS
    folder: Path
    error: str | None


def load_records(sweep: Sweep, folder: Path) -> list[TrialRecord]:
    """Read the results of all trials from their folders, in the order of the trials."""
    records = [_record(spec, sweep.config.metric, folder) for spec in sweep.trials]
    changes_values = isinstance(sweep.config.scheduler, PBTConfig)
    return [_with_final_values(record) for record in records] if changes_values else records


def best_record(records: list[TrialRecord], mode: str) -> TrialRecord | None:
    """Return the best finished trial, the first of several equal ones. Unfinished trials have no model to use."""
    best = None
    for record in records:
        if record.status != "finished" or record.metric is None:
            continue
        if best is None or best.metric is None or is_better(mode, record.metric, best.metric):
            best = record
    return best


def final_metric(folder: Path, name: str, metric: str) -> float | None:
    """Return the value that a trial is compared by; None if it has none or it is NaN."""
    outcome = folders.read_outcome(folder, name)
    return _metric(outcome, _steps(outcome), metric)


def write_results(sweep: Sweep, records: list[TrialRecord], folder: Path) -> list[Path]:
    """Write `results.parquet` and, if a trial finished, `best.yaml` for `raylign run`; return the files written."""
    columns: dict[str, Any] = {
        "trial": [record.id for record in records],
        "status": [record.status for record in records],
    }
    for key in searched_keys(records):
        columns[key] = _arrow_column([record.values.get(key) for record in records])
    columns["metric"] = pa.array([record.metric for record in records], pa.float64())
    columns["step"] = pa.array([record.step for record in records], pa.int64())
    for name in SUMMARY_METRICS:
        columns[name] = pa.array([record.summary_metrics[name] for record in records], pa.float64())
    columns["folder"] = [str(record.folder) for record in records]
    columns["error"] = pa.array([record.error for record in records], pa.string())
    about = {"sweep": sweep.config.name, "metric": sweep.config.metric, "mode": sweep.config.mode}
    with replacing(folder / PARQUET) as writing:
        pq.write_table(pa.table(columns).replace_schema_metadata(about), writing)
    best = best_record(records, sweep.config.mode)
    if best is None:
        return [folder / PARQUET]
    tree = RunFolder(best.folder).config.model_dump(mode="json")
    head = (
        f"# The best of {len(records)} trials of the sweep {sweep.config.name}: trial {best.id}, {sweep.config.metric} "
        f"{best.metric:.6g} ({sweep.config.mode}).\n# Run it with: raylign run {BEST}\n"
    )
    if isinstance(sweep.config.scheduler, PBTConfig):
        head += "# These are its final values. Earlier values, and the trials that it copied, are in population.json.\n"
    tree["name"] = f"{sweep.config.name}-best"
    write_atomic(folder / BEST, head + yaml.safe_dump(tree, sort_keys=False))
    return [folder / PARQUET, folder / BEST]


def searched_keys(records: list[TrialRecord]) -> list[str]:
    """Return the keys that are searched in any of the trials."""
    return list(dict.fromkeys(key for record in records for key in record.values))


def results_table(sweep: Sweep, records: list[TrialRecord]) -> Table:
    """Return the table of all trials, best first and failed ones last. Cells wrap if it is too wide, so no digit is lost."""
    config, keys = sweep.config, searched_keys(records)
    best = best_record(records, config.mode)
    table = Table("trial", *(escape(short_key(key, keys)) for key in keys), "status")
    known = {name for record in records for name, value in record.summary_metrics.items() if value is not None}
    shown = [name for name in SUMMARY_METRICS if name in known and name != config.metric]
    for name in (f"{config.metric} ({config.mode})", *shown):
        table.add_column(name.replace("_seconds", " (s)"), justify="right")
    for column in table.columns:
        column.overflow = "fold"
    for record in sorted(records, key=lambda record: _sort_key(record, config.mode)):
        cells = [format_value(record.values.get(key)) for key in keys]
        values = [format_value(record.metric), *(format_value(record.summary_metrics[name]) for name in shown)]
        status = record.status if record.error is None else f"{record.status}: {record.error[:60]}"
        table.add_row(record.id, *cells, escape(status), *values, style="bold green" if record is best else None)
    return table


def short_key(key: str, keys: list[str]) -> str:
    """Return the shortest end of a dotted key that is unique among the keys: `beta`, `kl.coef`."""
    parts = key.split(".")
    for n in range(min(2, len(parts) - 1) or 1, len(parts) + 1):
        end = ".".join(parts[-n:])
        if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def format_values(values: Mapping[str, Any]) -> str:
    """Return searched values as one line: `beta 0.1, optimizer.learning_rate 0.0005`."""
    return ", ".join(f"{short_key(key, list(values))} {format_value(value)}" for key, value in values.items())


def format_value(value: Any) -> str:
    """Return a value as short text: four digits of a number, the name of a config file, `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value.get("name", str(value)) if isinstance(value, dict) else str(value)
    return escape(os.path.basename(text) if text.endswith((".yaml", ".yml")) else text)


def _record(spec: TrialSpec, metric: str, folder: Path) -> TrialRecord:
    outcome = folders.read_outcome(folder, spec.id)
    steps = _steps(outcome)
    summary = outcome.summary or {}
    metrics = {name: summary.get(name) for name in SUMMARY_METRICS}
    value = _metric(outcome, steps, metric)
    step = int(steps[-1]["step"]) if steps else None
    return TrialRecord(spec.id, spec.values, outcome.status, value, step, metrics, outcome.folder, outcome.error)


def _steps(outcome: folders.Outcome) -> list[dict[str, Any]]:
    return RunFolder(outcome.folder).metrics()


def _metric(outcome: folders.Outcome, steps: list[dict[str, Any]], metric: str) -> float | None:
    if metric in SUMMARY_METRICS:
        value = (outcome.summary or {}).get(metric)
    else:
        value = next((step[metric] for step in reversed(steps) if step.get(metric) is not None), None)
    return None if value is None or math.isnan(value) else value


def _with_final_values(record: TrialRecord) -> TrialRecord:
    """Replace the values by the trial's final ones, which PBT may have changed."""
    tree = RunFolder(record.folder).config.model_dump(mode="json")
    return replace(record, values={key: value_at(tree, key, value) for key, value in record.values.items()})


def _sort_key(record: TrialRecord, mode: str) -> tuple[bool, bool, float]:
    value = record.metric if record.metric is not None else 0.0
    return record.status != "finished", record.metric is None, -value if mode == "max" else value


def _arrow_column(values: list[Any]) -> pa.Array:
    """Make a column of booleans or numbers if all values are such, else of text."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known):
        return pa.array(values, pa.bool_())
    if all(isinstance(value, int) and not isinstance(value, bool) for value in known):
        return pa.array(values, pa.int64())
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())
