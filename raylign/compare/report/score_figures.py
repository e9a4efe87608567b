"""Figures of the results: score against KL, win rates, settings, over-optimisation, length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from raylign.compare.records import RunRecord
from raylign.compare.report.drawing import (
    INTERVALS,
    along,
    by_setting,
    cross,
    finish,
    frame,
    name_points,
    new_figure,
    style,
)
from raylign.compare.report.groups import Group, against_reference_answers, groups, methods, paired
from raylign.compare.report.intervals import Interval, bootstrap, length_controlled, mean_of, over_seeds, wins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rival = Literal["start", "reference answer"]
"""Opponent of a win rate: the start's own completion, or the data's answer to the prompt."""
KL = "KL to the reference (nats per completion)"
SCORE = "score on held-out prompts"


def frontier(records: Sequence[RunRecord], optimum: Sequence[tuple[float, float]] = ()) -> Figure:
    """Draw every run as a faint point, every setting as a cross, and the settings of a method as a line."""
    figure = new_figure()
    axes = figure.subplots()
    looks = style([record.label for record in records])
    names: list[tuple[str, float, float]] = []
    for settings in methods(records).values():
        look = looks[settings[0].label]
        known = sorted((g for g in settings if math.isfinite(g.kl.value)), key=lambda g: g.kl.value)
        runs = [record for g in known for record in g.records if record.kl is not None]
        axes.scatter(
            [r.kl or 0.0 for r in runs],
            [r.score_after for r in runs],
            color=look["color"],
            s=12,
            alpha=0.35,
            linewidths=0,
        )
        axes.plot(
            [g.kl.value for g in known], [g.score.value for g in known], color=look["color"], linewidth=0.8, alpha=0.6
        )
        for i, group in enumerate(known):
            bound = " (KL at most)" if group.records[0].kl_is_bound else ""
            cross(axes, group.kl, group.score, **look, markersize=6, label=None if i else f"{group.label}{bound}")
            names.append((by_setting(group), group.kl.value, group.score.value))
    start = over_seeds([record.score_before for record in records if record.done])
    axes.plot([0], [start.value], marker="o", color="black", markersize=5)
    names.append(("start", 0.0, start.value))
    if optimum:
        widest = max((record.kl or 0 for record in records if record.done), default=1.0)
        inside = sorted(point for point in optimum if point[0] < 1.15 * widest)
        axes.plot(*zip(*inside, strict=True), color="black", linewidth=1.2, label="optimum, every beta")
    every = groups(records)
    kls = [group.kl for group in every]
    low = min([0.0, *(record.kl for record in records if record.kl is not None)])
    frame(axes, [*kls, Interval(0.0)], [*(g.score for g in every), start], x_from=low - 0.03 * _widest(kls))
    name_points(axes, names)
    finish(axes, x=KL, y=SCORE, title=f"Score against KL ({INTERVALS})")
    return figure


@dataclass(frozen=True)
class WinRate:
    """Win rate of a group over all its seeds, raw and at equal length."""

    group: Group
    rate: Interval
    at_equal_length: Interval


def win_rates(records: Sequence[RunRecord], rival: Rival) -> list[WinRate]:
    """Return the win rate of every setting, prompt by prompt, against the start's completion or the reference answer."""
    rates = []
    for group in groups(records):
        pairs = [
            paired(r.after, r.before) if rival == "start" else against_reference_answers(r.after) for r in group.records
        ]
        pairs = [pair for pair in pairs if len(pair[0])]
        if pairs:
            shortest = min(len(pair[0]) for pair in pairs)  # a prompt that could not be scored is missing
            tables = [np.stack([wins(a, b), gap], axis=1)[:shortest] for a, b, gap in pairs]
            rate = bootstrap([table[:, 0] for table in tables], mean_of)
            rates.append(WinRate(group, rate, bootstrap(tables, length_controlled, draws=500)))
    return rates


def win_rate_figure(records: Sequence[RunRecord], rates: Sequence[WinRate], rival: str) -> Figure:
    """Draw the win rates with their intervals, one setting in each line."""
    figure = new_figure(7.5, 1.6 + 0.34 * len(rates))
    axes = figure.subplots()
    looks = style([record.label for record in records])
    for y, won in enumerate(rates):
        look = looks[won.group.label]
        for shift, interval, face in ((-0.12, won.rate, look["color"]), (0.12, won.at_equal_length, "white")):
            axes.plot(
                [100 * (interval.low or 0), 100 * (interval.high or 0)],
                [y + shift] * 2,
                color=look["color"],
                linewidth=1.2,
            )
            axes.plot(
                [100 * interval.value],
                [y + shift],
                color=look["color"],
                marker=look["marker"],
                markerfacecolor=face,
                markersize=6,
            )
    axes.axvline(50, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rates)), [won.group.title for won in rates], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(right=101)
    axes.plot([], [], color="grey", marker="o", linestyle="none", label="win rate")
    axes.plot([], [], color="grey", marker="o", markerfacecolor="white", linestyle="none", label="at equal length")
    finish(
        axes,
        x=f"prompts won against the {rival} (%), ties count half",
        y="",
        title="Win rate (bars: 95 % bootstrap over seeds and prompts)",
    )
    return figure


def robustness(records: Sequence[RunRecord]) -> Figure:
    """Draw the score at each beta (left) and the spread over all settings and seeds (right, which names the colours)."""
    figure = new_figure(9.5, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    looks = style([record.label for record in records])
    by_method = methods(records)
    shown: list[Interval] = []
    for settings in by_method.values():
        look = looks[settings[0].label]
        betas = sorted({g.setting["beta"] for g in settings if "beta" in g.setting})
        scores = [
            over_seeds([r.score_after for g in settings if g.setting.get("beta") == b for r in g.records])
            for b in betas
        ]
        shown += scores
        if betas:
            along(left, betas, scores, **look, markersize=5, linewidth=1.2, label=settings[0].label)
    if left.get_lines():
        left.set_xscale("log")
        ticks = sorted({record.beta for record in records if record.beta is not None})
        left.set_xticks(ticks, [f"{beta:g}" for beta in ticks])
        left.minorticks_off()
    finish(left, x="beta (KL coefficient)", y=SCORE, title=f"Score at each beta ({INTERVALS})", legend=False)
    for x, settings in enumerate(by_method.values()):
        look = looks[settings[0].label]
        scores = [record.score_after for g in settings for record in g.records]
        right.plot(
            [x, x], [min(scores), max(scores)], color=look["color"], linewidth=6, alpha=0.2, solid_capstyle="butt"
        )
        right.scatter(np.full(len(scores), x), scores, color=look["color"], marker=look["marker"], s=22, alpha=0.7)
        right.plot([x - 0.16, x + 0.16], [float(np.median(scores))] * 2, color="black", linewidth=1)
    right.set_xticks(range(len(by_method)), [settings[0].label for settings in by_method.values()], fontsize=8)
    right.tick_params("x", labelrotation=20)
    for label in right.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    right.set_xlim(-0.6, len(by_method) - 0.4)
    finish(right, x="", y="", title="Every run: range over settings and seeds (line: median)", legend=False)
    right.axhline(
        over_seeds([record.score_before for record in records if record.done]).value,
        color="black",
        linestyle=":",
        linewidth=0.8,
    )
    left.axhline(
        over_seeds([record.score_before for record in records if record.done]).value,
        color="black",
        linestyle=":",
        linewidth=0.8,
    )
    return figure


def over_optimisation(records: Sequence[RunRecord]) -> Figure:
    """Draw score against KL during the runs (left) and learned rewards beside the evaluation score (right, if any)."""
    learned = [record for record in records if record.done and record.learned_reward]
    figure = new_figure(9.5 if learned else 7.5, 4.2)
    left, *more = figure.subplots(1, 2 if learned else 1, squeeze=False)[0]
    looks = style([record.label for record in records])
    named: set[str] = set()
    for record in (record for record in records if record.done):
        known = [p for p in record.curve if p.score is not None and p.kl is not None]
        line = {"color": looks[record.label]["color"], "alpha": 0.6, "linewidth": 1, "marker": ".", "markersize": 4}
        left.plot(
            [p.kl or 0.0 for p in known],
            [p.score or 0.0 for p in known],
            **line,
            label=None if record.label in named else record.label,
        )
        named.add(record.label)
    finish(left, x=KL, y=SCORE, title="Score against KL during each run")
    in_legend: set[str] = set()
    for record in learned:
        own = [p for p in record.curve if p.reward is not None]
        true = [p for p in record.curve if p.score is not None]
        more[0].plot(
            [p.step for p in own],
            [p.reward or 0.0 for p in own],
            color=looks[record.label]["color"],
            alpha=0.6,
            linewidth=1,
            label=None if record.label in in_legend else f"{record.label}: learned reward, on training prompts",
        )
        more[0].plot(
            [p.step for p in true],
            [p.score or 0.0 for p in true],
            color="black",
            alpha=0.6,
            marker=".",
            linewidth=1,
            label=None if in_legend else "evaluation score, on held-out prompts",
        )
        in_legend.add(record.label)
    if learned:
        more[0].xaxis.get_major_locator().set_params(integer=True)
        finish(more[0], x="step", y="reward", title="Learned reward and evaluation score")
    return figure


def lengths(records: Sequence[RunRecord]) -> Figure:
    """Draw the change in completion length against the score."""
    figure = new_figure()
    axes = figure.subplots()
    looks = style([record.label for record in records])
    named: set[str] = set()
    grown_by: list[Interval] = []
    names: list[tuple[str, float, float]] = []
    for group in groups(records):
        grown = over_seeds([record.length_after - record.length_before for record in group.records])
        grown_by.append(grown)
        label = None if group.label in named else group.label
        cross(axes, grown, group.score, **looks[group.label], markersize=6, label=label)
        names.append((by_setting(group), grown.value, group.score.value))
        named.add(group.label)
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    frame(axes, [*grown_by, Interval(0.0)], [group.score for group in groups(records)])
    name_points(axes, names)
    finish(axes, x="change of the mean completion length (tokens)", y=SCORE, title=f"Length growth ({INTERVALS})")
    return figure


def _widest(kls: Sequence[Interval]) -> float:
    return max((kl.value for kl in kls if math.isfinite(kl.value)), default=1.0)
