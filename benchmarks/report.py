"""The Markdown report of a benchmark, from its measurements."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import date
from statistics import mean, median

from harness import Measurement

Field = Callable[[Measurement], float]
WHOLE: Field = lambda run: run.seconds_whole  # noqa: E731
INNER: Field = lambda run: run.seconds_inner  # noqa: E731


def markdown(title: str, unit: str, runs: list[Measurement], cores: int) -> str:
    """Return the report: times and ratios for each dtype, then losses, then a breakdown of each side's time."""
    sides = list(dict.fromkeys(run.side for run in runs))
    dtypes = list(dict.fromkeys(run.dtype for run in runs))
    first = sides[0]
    lines = [
        f"# {title}",
        "",
        f"{date.today().isoformat()}, {cores} of {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}. Made by the script in this folder; medians over the rounds.",
        f"Ratios compare each side with {first} in the same round (above 1: {first} is faster); "
        "in brackets the lowest and highest.",
    ]
    for dtype in dtypes:
        by_side = {side: [run for run in runs if (run.side, run.dtype) == (side, dtype)] for side in sides}
        lines += ["", f"## {dtype}", "", *_times(by_side, first, unit), "", *_losses(by_side), "", *_breakdown(by_side)]
    return "\n".join(lines) + "\n"


def _times(by_side: dict[str, list[Measurement]], first: str, unit: str) -> list[str]:
    lines = [
        f"| side | whole s | inner s | imports s | {unit}/s inner | whole / {first} | inner / {first} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for side, runs in by_side.items():
        imports = [run.seconds_import for run in runs if run.seconds_import is not None]
        cells = [
            side,
            f"{median(map(WHOLE, runs)):.1f}",
            f"{median(map(INNER, runs)):.1f}",
            f"{median(imports):.1f}" if imports else "-",
            f"{median(run.items / run.seconds_inner for run in runs):.2f}",
            _ratio(runs, by_side[first], WHOLE),
            _ratio(runs, by_side[first], INNER),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ratio(runs: list[Measurement], base: list[Measurement], field: Field) -> str:
    ratios = [field(run) / field(other) for run, other in zip(runs, base, strict=True)]
    return f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def _losses(by_side: dict[str, list[Measurement]]) -> list[str]:
    """Tabulate first step, last step and mean of every metric, from each side's first round; rounds repeat the seeds."""
    lines = ["| side | metric | steps | first | last | mean |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for side, runs in by_side.items():
        steps = runs[0].losses
        for name in steps[0]:
            column = [step[name] for step in steps]
            lines.append(
                f"| {side} | {name} | {len(column)} | {column[0]:.4f} | {column[-1]:.4f} | {mean(column):.4f} |"
            )
    return lines


def _breakdown(by_side: dict[str, list[Measurement]]) -> list[str]:
    lines = ["Where the time goes (medians, seconds; sections may contain each other):", ""]
    for side, runs in by_side.items():
        names = list(dict.fromkeys(name for run in runs for name in run.breakdown))
        parts = [f"{name} {median(run.breakdown.get(name, 0.0) for run in runs):.2f}" for name in names]
        around = median(run.seconds_whole - run.seconds_inner for run in runs)
        lines.append(f"- **{side}**: {', '.join(parts)}; outside the work (start, imports, load, save) {around:.1f}")
    return lines


def largest_gap(runs: list[Measurement], left: str, right: str, metric: str) -> float | None:
    """Return the largest difference of a metric, in one round, between two sides that saw the same batches in order."""
    by_side = [[run for run in runs if run.side == side] for side in (left, right)]
    if not all(by_side):
        return None
    columns = [[step[metric] for step in side_runs[0].losses] for side_runs in by_side]
    return max(abs(a - b) for a, b in zip(*columns, strict=True))
