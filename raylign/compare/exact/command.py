"""The command `raylign compare`: runs, table, picture, file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raylign.compare.exact.frontier import draw
from raylign.compare.exact.runs import ExactRecord, ExactSpec, curve, execute, plan, write_records
from raylign.config import TaskConfig
from raylign.errors import UserError


def compare(task: str, wanted: ExactSpec, json_file: Path | None) -> list[ExactRecord]:
    """Make all runs, show how near each came to the optimum, and keep rows and picture in the comparison's folder.

    Raises:
        UserError: an option is wrong; nothing was started.
    """
    if task != "exact":
        raise UserError(f"--task: {task!r} has no known optimum to compare with; only exact has")
    folder, plans = plan(wanted)
    console = Console()
    rows: list[ExactRecord] = []
    with console.status("starting") as status:
        for row in execute(plans, status.update):
            rows.append(row)
            write_records(folder / "rows.json", rows)
            console.print(
                f"{row.algorithm:<12} beta {row.beta:<4g} seed {row.seed}  "
                f"{row.fraction_of_optimum:.4f} of the optimum  ({row.seconds:.0f} s)"
            )
        status.update("drawing")
        pictures = draw(rows, curve(plans, rows), folder, _title(plans[0].config.task))
    if json_file:
        write_records(json_file, rows)
    console.print(_table(rows))
    for file in [folder / "rows.json", *pictures]:
        console.print(os.path.relpath(file), soft_wrap=True)
    return rows


def _table(rows: Sequence[ExactRecord]) -> Table:
    """Fraction of the attainable gain, mean over seeds and the lowest of them."""
    table = Table(title="fraction of the optimum, (J - J_ref) / (J* - J_ref): mean over seeds (lowest)")
    betas = sorted({row.beta for row in rows}, reverse=True)
    table.add_column("algorithm")
    for beta in betas:
        table.add_column(f"beta {beta:g}", justify="right")
    for algorithm in dict.fromkeys(row.algorithm for row in rows):
        cells = []
        for beta in betas:
            found = [r.fraction_of_optimum for r in rows if r.algorithm == algorithm and r.beta == beta]
            cells.append(f"{sum(found) / len(found):.4f} ({min(found):.4f})" if found else "-")
        table.add_row(algorithm, *cells)
    return table


def _title(task: TaskConfig | None) -> str:
    settings = task.model_dump(exclude={"name"}) if task else {}
    return "exact task: " + ", ".join(f"{key} {value}" for key, value in settings.items())
