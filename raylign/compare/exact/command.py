"""The command `raylign compare` without a spec: runs on the exact task, a table and a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raylign.compare.exact.expand import ExactSpec, expand_exact
from raylign.compare.exact.frontier import draw
from raylign.compare.exact.records import ExactRecord, execute, write_records
from raylign.compare.exact.scores import curve_of
from raylign.compare.records import RECORDS
from raylign.config import TaskConfig
from raylign.errors import UserError


def compare_exact(task: str, spec: ExactSpec, json_file: Path | None) -> list[ExactRecord]:
    """Execute all runs, show how close each comes to the optimum, and save records and picture in the comparison's folder.

    Raises:
        UserError: an option is wrong; nothing was started.
    """
    if task != "exact":
        raise UserError(f"--task: {task!r} has no known optimum to compare with; use exact")
    folder, planned = expand_exact(spec)
    console = Console()
    records: list[ExactRecord] = []
    with console.status("starting") as status:
        for record in execute(planned, status.update):
            records.append(record)
            write_records(folder / RECORDS, records)
            console.print(
                f"{record.algorithm:<12} beta {record.beta:<4g} seed {record.seed}  "
                f"{record.fraction_of_optimum:.4f} of the optimum  ({record.seconds:.0f} s)"
            )
        status.update("drawing")
        optimum = curve_of(str(Path(records[0].policy).parent), [record.beta for record in records])
        pictures = draw(records, optimum, folder, _title(planned[0].config.task))
    if json_file:
        write_records(json_file, records)
    console.print(_table(records))
    for file in [folder / RECORDS, *pictures]:
        console.print(os.path.relpath(file), soft_wrap=True)
    return records


def _table(records: Sequence[ExactRecord]) -> Table:
    """Return the fraction of the attainable gain by algorithm and beta: mean over seeds, and the lowest."""
    table = Table(title="fraction of the optimum, (J - J_ref) / (J* - J_ref): mean over seeds (lowest)")
    betas = sorted({record.beta for record in records}, reverse=True)
    table.add_column("algorithm")
    for beta in betas:
        table.add_column(f"beta {beta:g}", justify="right")
    for algorithm in dict.fromkeys(record.algorithm for record in records):
        cells = []
        for beta in betas:
            fractions = [r.fraction_of_optimum for r in records if r.algorithm == algorithm and r.beta == beta]
            cells.append(f"{sum(fractions) / len(fractions):.4f} ({min(fractions):.4f})" if fractions else "-")
        table.add_row(algorithm, *cells)
    return table


def _title(task: TaskConfig | None) -> str:
    settings = task.model_dump(exclude={"name"}) if task else {}
    return "exact task: " + ", ".join(f"{key} {value}" for key, value in settings.items())
