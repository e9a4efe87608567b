"""The report of a comparison, made from its records alone; every section names its runs and the command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from raylign.compare.records import RunRecord
from raylign.compare.report.claims import claims, verdict
from raylign.compare.report.html import page
from raylign.compare.report.markdown import text
from raylign.compare.report.model import Report
from raylign.compare.report.sections import ReportData, make_sections
from raylign.config.compare import CompareConfig


def write_report(spec: CompareConfig, spec_file: Path, records: Sequence[RunRecord], folder: Path) -> list[Path]:
    """Write `report.html`, which needs no other file, and `report.md` with its figures; return both paths."""
    report = make_report(spec, spec_file, records, folder)
    html, markdown = folder / "report.html", folder / "report.md"
    html.write_text(page(report))
    markdown.write_text(text(report, folder))
    return [html, markdown]


def make_report(spec: CompareConfig, spec_file: Path, records: Sequence[RunRecord], folder: Path) -> Report:
    """Make the report, and draw its figures into `folder/figures`."""
    data = ReportData(spec, records, folder)
    task = spec.task.name if spec.task else None
    return Report(
        title=f"{spec.name}: {', '.join(dict.fromkeys(record.label for record in records))}",
        command=f"raylign compare {shlex.quote(os.path.relpath(spec_file))}",
        summary=_summary(spec, records),
        verdict=verdict(data.done, task, spec.target_score),
        claims=tuple(claims(data.done, task, spec.target_score)),
        sections=tuple(make_sections(data)),
    )


def _summary(spec: CompareConfig, records: Sequence[RunRecord]) -> str:
    budget = (
        f"a budget of {spec.budget.amount:,} {spec.budget.unit.replace('_', ' ')} each"
        if spec.budget
        else "no common budget"
    )
    failed = sum(not record.done for record in records)
    return (
        f"{len(records)} runs: the same start, reference, preferences, held-out prompts and seeds ({', '.join(map(str, spec.seeds))}) for every "
        f"method, betas {', '.join(f'{beta:g}' for beta in spec.betas)}, {budget}."
        + (f" {failed} of them failed and are left out." if failed else "")
    )
