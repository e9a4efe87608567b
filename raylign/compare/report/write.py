"""The report of a comparison, from its rows alone: sections, each with its runs and the command that makes it again."""

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


def write_report(spec: CompareConfig, spec_file: Path, rows: Sequence[RunRecord], folder: Path) -> list[Path]:
    """`report.html`, which needs no other file, `report.md` with its pictures beside it; returns what was written."""
    report = make_report(spec, spec_file, rows, folder)
    html, markdown = folder / "report.html", folder / "report.md"
    html.write_text(page(report))
    markdown.write_text(text(report, folder))
    return [html, markdown]


def make_report(spec: CompareConfig, spec_file: Path, rows: Sequence[RunRecord], folder: Path) -> Report:
    """Draws the figures into `folder/figures`."""
    of = ReportData(spec, rows, folder)
    task = spec.task.name if spec.task else None
    return Report(
        title=f"{spec.name}: {', '.join(dict.fromkeys(row.label for row in rows))}",
        command=f"raylign compare {shlex.quote(os.path.relpath(spec_file))}",
        about=_about(spec, rows),
        verdict=verdict(of.done, task, spec.target_score),
        claims=tuple(claims(of.done, task, spec.target_score)),
        sections=tuple(make_sections(of)),
    )


def _about(spec: CompareConfig, rows: Sequence[RunRecord]) -> str:
    budget = (
        f"a budget of {spec.budget.of_each:,} {spec.budget.per.replace('_', ' ')} each"
        if spec.budget
        else "no common budget"
    )
    failed = sum(not row.done for row in rows)
    return (
        f"{len(rows)} runs: the same start, reference, preferences, held-out prompts and seeds ({', '.join(map(str, spec.seeds))}) for every "
        f"method, betas {', '.join(f'{beta:g}' for beta in spec.betas)}, {budget}."
        + (f" {failed} of them failed and are left out." if failed else "")
    )
