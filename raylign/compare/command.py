"""The command `raylign compare SPEC.yaml`: check, make the runs, keep their rows, write the report."""

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
from raylign.compare.records import RunRecord, write_records
from raylign.config.compare import CompareConfig, load_compare
from raylign.controllers.stages import plan as plan_stages
from raylign.errors import RaylignError
from raylign.tracking import progress_console

ROWS = "rows.json"


@dataclass(frozen=True)
class Comparison:
    """A checked spec, and the runs that it asks for."""

    file: Path
    spec: CompareConfig
    recipes: list[Recipe]
    folder: Path
    planned: list[PlannedRun]


def prepare(path: Path) -> Comparison:
    """Read and check everything.

    Raises:
        ConfigError, UserError: what is wrong, with its line; nothing was started.
    """
    spec, lines = load_compare(path)
    recipes = read_recipes(path, spec, lines)
    check_matched(recipes)
    folder = comparison_folder(spec)
    planned = expand_runs(spec, recipes, folder)
    for one in planned:
        plan_stages(one.config)  # the files that they name are there
    return Comparison(path, spec, recipes, folder, planned)


def measured(comparison: Comparison, note: Callable[[str], None]) -> Comparison:
    """With as many steps as a budget of device-seconds pays for, by pilot runs; other budgets are in the plan already."""
    spec, recipes, folder = comparison.spec, comparison.recipes, comparison.folder
    if spec.budget is None or spec.budget.per != "device_seconds":
        return comparison
    steps = measured_steps(spec, recipes, folder, note)
    return replace(comparison, planned=expand_runs(spec, recipes, folder, steps))


def compare_spec(path: Path, json_file: Path | None = None, console: Console | None = None) -> list[RunRecord]:
    """Make all runs and the report. The same command goes on where it stopped, and writes the report anew.

    Raises:
        UserError: the spec must be mended; nothing was started.
        RaylignError: no run came to its end.
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

    comparison = measured(comparison, note)
    rows = make_records(comparison.planned, comparison.folder, note)
    write_records(comparison.folder / ROWS, rows)
    if not any(row.done for row in rows):
        raise RaylignError(f"no run came to its end; the first said: {rows[0].error}")
    note("writing the report")
    files = write_report(comparison.spec, comparison.file, rows, comparison.folder)
    if json_file:
        write_records(json_file, rows)
    for row in rows:
        if not row.done:
            console.print(f"failed: {row.id}: {row.error}", soft_wrap=True)
    for file in files:
        console.print(os.path.relpath(file), soft_wrap=True)
    return rows
