"""Figures of what it took: score over device-seconds, and where these went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from raylign.compare.records import RunRecord
from raylign.compare.report.claims import reached_by_all, seconds_to
from raylign.compare.report.drawing import finish, new_figure, style
from raylign.compare.report.groups import Group, best, methods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIB = 2**30


def learners(rows: Sequence[RunRecord]) -> list[RunRecord]:
    """Without best-of-n, which learns nothing: what it takes, it takes again for every prompt."""
    return [row for row in rows if row.done and row.algorithm != "best_of_n"]


def cost_to_score(
    rows: Sequence[RunRecord], target: float | None
) -> tuple[Figure, float, list[tuple[Group, list[float | None]]]]:
    """Score over device-seconds of learning; with it the score asked for, and what each method's best setting needed to
    reach it, seed by seed (None: it never did)."""
    rows = learners(rows)
    figure = new_figure()
    axes = figure.subplots()
    looks = style([row.label for row in rows])
    chosen = [best(settings) for settings in methods(rows).values()]
    goal = reached_by_all(chosen, target)
    picked = {row.id for group in chosen for row in group.rows}
    named: set[str] = set()
    for row in rows:
        known = [p for p in row.curve if p.score is not None]
        strong = row.id in picked
        label = None if row.label in named or not strong else row.label
        look = looks[row.label]
        axes.plot(
            [p.device_seconds for p in known],
            [p.score or 0.0 for p in known],
            **look,
            markersize=4,
            linewidth=1.4 if strong else 0.8,
            alpha=0.9 if strong else 0.25,
            label=label,
        )
        if strong:
            named.add(row.label)
    axes.axhline(goal, color="black", linestyle=":", linewidth=0.8)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (-4, 3), "ha": "right"}
    axes.annotate(f"score {goal:.2f}", (1, goal), **place, fontsize=8)
    unit = _unit(rows)
    finish(
        axes,
        x=f"device-seconds of learning ({unit}), start included, stages not",
        y="score on held-out prompts",
        title="Score over cost, a line a run (strong: best setting of each method)",
    )
    return figure, goal, [(group, [seconds_to(row, goal) for row in group.rows]) for group in chosen]


def where_it_went(rows: Sequence[RunRecord]) -> Figure:
    """Left device-seconds by role, right peak memory by role: means over the runs of a method."""
    found = {
        settings[0].label: [row for g in settings for row in g.rows if row.cost] for settings in methods(rows).values()
    }
    figure = new_figure(9.5, 1.8 + 0.5 * len(found))
    left, right = figure.subplots(1, 2, sharey=True)
    roles = list(
        dict.fromkeys(role for runs in found.values() for row in runs if row.cost for role in row.cost.device_seconds)
    )
    colours = {role: f"C{i}" for i, role in enumerate(roles)}
    labels = list(found)
    for axes, name in ((left, "device_seconds"), (right, "peak_bytes")):
        starts = np.zeros(len(labels))
        for role in roles:
            values = np.array([_mean_of(found[label], name, role) for label in labels])
            values = values / GIB if name == "peak_bytes" else values
            axes.barh(
                range(len(labels)),
                values,
                left=starts,
                height=0.6,
                color=colours[role],
                label=role if axes is left else None,
            )
            starts = starts + values
        for y, label in enumerate(labels):
            totals = [_total(row, name) / (GIB if name == "peak_bytes" else 1) for row in found[label]]
            axes.plot([min(totals), max(totals)], [y, y], color="black", linewidth=1.2)
    left.set_yticks(range(len(labels)), labels, fontsize=8)
    left.invert_yaxis()
    finish(
        left,
        x=f"device-seconds ({_unit([r for runs in found.values() for r in runs])}), evaluation included",
        y="",
        title="Held by role, mean of the runs (line: their range)",
        legend=False,
    )
    finish(right, x="peak memory of the largest actor of each role (GiB)", y="", title="Memory by role", legend=False)
    figure.legend(loc="outside lower center", ncols=len(roles), frameon=False, fontsize=8)
    return figure


def _mean_of(rows: Sequence[RunRecord], name: str, role: str) -> float:
    return float(np.mean([getattr(row.cost, name).get(role, 0.0) for row in rows]))


def _total(row: RunRecord, name: str) -> float:
    return float(sum(getattr(row.cost, name).values()))


def _unit(rows: Sequence[RunRecord]) -> str:
    gpu = any(row.cost and row.cost.device == "gpu" for row in rows)
    return "GPU-seconds" if gpu else "CPU-seconds"
