"""The command `raylign compare SPEC.yaml`: check, execute the runs, save their records, write the report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from raylign.compare.execute import make_records
from raylign.compare.expand import PlannedRun, Recipe, comparison_folder, expand_runs, read_recipes
from raylign.compare.matched import check_matched
from raylign.compare.pilot import measured_steps
from raylign.compare.records import RECORDS, RunRecord, write_records
from raylign.config.compare import CompareConfig, load_compare
from raylign.errors import RaylignError
from raylign.pipeline.stages import build_graph
from raylign.tracking import progress_console


@dataclass(frozen=True)
class Comparison:
    """A checked spec, and its runs."""

    file: Path
    spec: CompareConfig
    recipes: list[Recipe]
    folder: Path
    planned: list[PlannedRun]


def prepare(path: Path) -> Comparison:
    """Read and check the spec, its run configs and the files that they name.

    Raises:
        ConfigError, UserError: an error in one of them, with its line; nothing was started.
    """
    spec, lines = load_compare(path)
    recipes = read_recipes(path, spec, lines)
    check_matched(recipes)
    folder = comparison_folder(spec)
    planned = expand_runs(spec, recipes, folder)
    for one in planned:
        build_graph(one.config)  # checks that the files they name exist
    return Comparison(path, spec, recipes, folder, planned)


def with_measured_steps(comparison: Comparison, note: Callable[[str], None]) -> Comparison:
    """Measure with pilot runs how many steps fit in a budget of device-seconds, and expand the spec again.

    Other budgets need no pilot.
    """
    spec, recipes, folder = comparison.spec, comparison.recipes, comparison.folder
    if spec.budget is None or spec.budget.unit != "device_seconds":
        return comparison
    steps = measured_steps(spec, recipes, folder, note)
    return replace(comparison, planned=expand_runs(spec, recipes, folder, steps))


def compare_spec(path: Path, json_file: Path | None = None, console: Console | None = None) -> list[RunRecord]:
    """Execute all runs and write the report. The same command continues where it stopped, and rewrites the report.

    Raises:
        UserError: the spec must be fixed; nothing was started.
        RaylignError: no run finished.
    """
    from raylign.compare.report.write import write_report

    console = console or Console()
    comparison = prepare(path)
    console.print(
        f"{comparison.spec.name}: {len(comparison.planned)} runs in {os.path.relpath(comparison.folder)}",
        soft_wrap=True,
    )
    progress = progress_console()

    def note(line: str) -> None:
        progress.print(line, soft_wrap=True, highlight=False, markup=False)

    comparison = with_measured_steps(comparison, note)
    records = make_records(comparison.planned, comparison.folder, note)
    write_records(comparison.folder / RECORDS, records)
    if not any(record.done for record in records):
        raise RaylignError(f"no run finished; error of the first: {records[0].error}")
    note("writing the report")
    files = write_report(comparison.spec, comparison.file, records, comparison.folder)
    if json_file:
        write_records(json_file, records)
    for record in records:
        if not record.done:
            console.print(f"failed: {record.id}: {record.error}", soft_wrap=True)
    for file in files:
        console.print(os.path.relpath(file), soft_wrap=True)
    return records
