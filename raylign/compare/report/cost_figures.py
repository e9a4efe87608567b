"""Figures of the cost: score over device-seconds, and device-seconds and memory by role."""

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


def learners(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the finished runs without best-of-n, which learns nothing and pays its cost again for every prompt."""
    return [record for record in records if record.done and record.algorithm != "best_of_n"]


def cost_to_score(
    records: Sequence[RunRecord], target: float | None
) -> tuple[Figure, float, list[tuple[Group, list[float | None]]]]:
    """Draw the score over device-seconds of learning.

    Returns:
        The figure, the target score, and for the best setting of each method the device-seconds to reach it, seed by
        seed (None: never reached).
    """
    records = learners(records)
    figure = new_figure()
    axes = figure.subplots()
    looks = style([record.label for record in records])
    chosen = [best(settings) for settings in methods(records).values()]
    goal = reached_by_all(chosen, target)
    picked = {record.id for group in chosen for record in group.records}
    named: set[str] = set()
    for record in records:
        known = [p for p in record.curve if p.score is not None]
        strong = record.id in picked
        label = None if record.label in named or not strong else record.label
        look = looks[record.label]
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
            named.add(record.label)
    axes.axhline(goal, color="black", linestyle=":", linewidth=0.8)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (-4, 3), "ha": "right"}
    axes.annotate(f"score {goal:.2f}", (1, goal), **place, fontsize=8)
    unit = _unit(records)
    finish(
        axes,
        x=f"device-seconds of learning ({unit}), with actor start, without stages",
        y="score on held-out prompts",
        title="Score over cost, one line per run (strong: best setting of each method)",
    )
    return figure, goal, [(group, [seconds_to(record, goal) for record in group.records]) for group in chosen]


def where_it_went(records: Sequence[RunRecord]) -> Figure:
    """Draw device-seconds (left) and peak memory (right) by role, as means over the runs of a method."""
    by_label = {
        settings[0].label: [record for g in settings for record in g.records if record.cost]
        for settings in methods(records).values()
    }
    figure = new_figure(9.5, 1.8 + 0.5 * len(by_label))
    left, right = figure.subplots(1, 2, sharey=True)
    roles = list(
        dict.fromkeys(
            role for runs in by_label.values() for record in runs if record.cost for role in record.cost.device_seconds
        )
    )
    colours = {role: f"C{i}" for i, role in enumerate(roles)}
    labels = list(by_label)
    for axes, name in ((left, "device_seconds"), (right, "peak_bytes")):
        starts = np.zeros(len(labels))
        for role in roles:
            values = np.array([_mean_of(by_label[label], name, role) for label in labels])
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
            totals = [_total(record, name) / (GIB if name == "peak_bytes" else 1) for record in by_label[label]]
            axes.plot([min(totals), max(totals)], [y, y], color="black", linewidth=1.2)
    left.set_yticks(range(len(labels)), labels, fontsize=8)
    left.invert_yaxis()
    finish(
        left,
        x=f"device-seconds ({_unit([r for runs in by_label.values() for r in runs])}), evaluation included",
        y="",
        title="Reserved by role, mean of the runs (line: their range)",
        legend=False,
    )
    finish(right, x="peak memory of the largest actor of each role (GiB)", y="", title="Memory by role", legend=False)
    figure.legend(loc="outside lower center", ncols=len(roles), frameon=False, fontsize=8)
    return figure


def _mean_of(records: Sequence[RunRecord], name: str, role: str) -> float:
    return float(np.mean([getattr(record.cost, name).get(role, 0.0) for record in records]))


def _total(record: RunRecord, name: str) -> float:
    return float(sum(getattr(record.cost, name).values()))


def _unit(records: Sequence[RunRecord]) -> str:
    gpu = any(record.cost and record.cost.device == "gpu" for record in records)
    return "GPU-seconds" if gpu else "CPU-seconds"
