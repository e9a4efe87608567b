"""Pictures of a sweep: the metric against each parameter, how trials learned, and all parameters at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raylign.config import RunConfig
from raylign.config.draw import Sweep
from raylign.config.metrics import step_metrics
from raylign.files import replacing
from raylign.tracking import read_metrics
from raylign.tuning.results import Row, best_of, number, searched, short, told

_DPI = 150
_LOG_SPAN = 10  # ratio of largest to smallest value from which an axis is logarithmic
_MOST_TICKS = 6  # values of a key that are all named on its axis
_MOST_LABELS = 10  # trials named in a legend
_COLOURS = mpl.colormaps["viridis"]
_BEST = "tab:red"
_NOT_SET = -0.15  # height for trials that a key is not searched for


def draw(sweep: Sweep, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the PNGs for which there is something to draw; returns them."""
    known = [row for row in rows if row.metric is not None]
    keys = [key for key in searched(list(rows)) if len({str(row.values.get(key)) for row in known}) > 1]
    if not known:
        return []
    files = [_learning_curves(sweep, rows, folder / "learning_curves.png")]
    if keys:
        files.insert(0, _against_parameters(sweep, known, keys, folder / "metric_by_parameter.png"))
    if len(keys) > 2:
        files.append(_parallel(sweep, known, keys, folder / "parallel_coordinates.png"))
    return [file for file in files if file is not None]


def with_unit(metric: str) -> str:
    """`kl/k1 (nats per sequence)`."""
    units = {
        "score_": "score",
        "evaluation/score": "score",
        "reward/": "score",
        "kl/coef": "",
        "kl": "nats per sequence",
        "evaluation/kl": "nats per sequence",
        "wall_seconds": "s",
        "time/idle": "0..1",
        "time/": "s",
        "throughput/": "tokens/s",
        "completion/length": "tokens",
        "tokens/": "tokens",
        "sft/": "nats per token",
        "policy/entropy": "nats per token",
    }
    if metric.endswith("/accuracy"):
        return f"{metric} (0..1)"
    unit = next((unit for start, unit in units.items() if metric.startswith(start)), "")
    return f"{metric} ({unit})" if unit else metric


def _against_parameters(sweep: Sweep, rows: Sequence[Row], keys: list[str], file: Path) -> Path:
    """One panel a key; the best trial is marked."""
    best = best_of(list(rows), sweep.config.mode)
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure = Figure((max(4.6 * columns, 5.5), 3.6 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, key in zip(panels, keys, strict=False):
        there = [row for row in rows if key in row.values]
        axis = _Axis([row.values[key] for row in there])
        for row, place in zip(there, axis.places, strict=True):
            is_best = row is best
            axes.plot(
                place,
                row.metric,
                "*" if is_best else "o" if row.status == "finished" else "x",
                color=_BEST if is_best else "tab:blue" if row.status == "finished" else "tab:gray",
                markersize=13 if is_best else 6,
                zorder=3 if is_best else 2,
            )
        axis.label(axes)
        axes.set_xlabel(short(key, keys))
        axes.grid(alpha=0.3)
    for axes in panels[len(keys) :]:
        axes.remove()
    for i in range(0, len(keys), columns):
        panels[i].set_ylabel(with_unit(sweep.config.metric))
    figure.suptitle(f"{sweep.config.name}: {_legend(rows)}", fontsize=11)
    return _save(figure, file)


def _learning_curves(sweep: Sweep, rows: Sequence[Row], file: Path) -> Path | None:
    """A metric of every step, trial by trial; a panel for each metric, as algorithms have different ones."""
    metric_of = {point.id: _curve_metric(sweep, point.config) for point in sweep.points}
    curves: dict[str, list[tuple[int, Row, list[dict[str, Any]]]]] = {}
    for i, row in enumerate(rows):
        source, metric = row.folder / "metrics.jsonl", metric_of[row.id]
        steps = [one for one in read_metrics(source) if one.get(metric) is not None] if source.exists() else []
        if steps:
            curves.setdefault(metric, []).append((i, row, steps))
    if not curves:
        return None
    best = best_of(list(rows), sweep.config.mode)
    named = len(rows) <= _MOST_LABELS
    figure = Figure((8.5 if len(curves) == 1 else 5.5 * len(curves), 5.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (metric, drawn) in zip(panels, curves.items(), strict=True):
        for i, row, steps in drawn:
            axes.plot(
                [one["step"] for one in steps],
                [one[metric] for one in steps],
                color=_BEST if row is best else _COLOURS(0.05 + 0.85 * i / max(1, len(rows) - 1)),
                linewidth=2.4 if row is best else 1.3,
                alpha=1.0 if row is best or named else 0.6,
                zorder=3 if row is best else 2,
                marker="." if len(steps) < 30 else None,
                label=f"{row.id}: {told(row.values)}" if row is best or named else None,
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(with_unit(metric))
        axes.grid(alpha=0.3)
    total = sum(map(len, curves.values()))
    figure.suptitle(f"{sweep.config.name}: {total} trials, the best in red", fontsize=11)
    figure.legend(loc="outside lower center", fontsize=8, ncols=2 if total > 4 else 1)
    return _save(figure, file)


def _parallel(sweep: Sweep, rows: Sequence[Row], keys: list[str], file: Path) -> Path:
    """A line a trial through the values of its keys to its metric, which gives it its colour. A key that only some trials
    have (`when`) has a place below its values for the others."""
    figure = Figure((2.2 * (len(keys) + 1) + 1.5, 4.8), layout="constrained")
    axes = figure.subplots()
    metrics = [row.metric or 0.0 for row in rows]
    colours = Normalize(min(metrics), max(metrics) + 1e-12)
    axis_of = {key: _Axis([row.values[key] for row in rows if key in row.values]) for key in keys}
    best = best_of(list(rows), sweep.config.mode)
    for row, metric in zip(rows, metrics, strict=True):
        heights = [axis_of[key].height(row.values[key]) if key in row.values else _NOT_SET for key in keys]
        heights.append(float(colours(metric)))
        axes.plot(
            range(len(keys) + 1),
            heights,
            color=_COLOURS(colours(metric)),
            linewidth=3 if row is best else 1.4,
            alpha=1 if row is best else 0.75,
            marker=".",
        )
    for column, key in enumerate(keys):
        axes.axvline(column, color="black", linewidth=0.8)
        everywhere = all(key in row.values for row in rows)
        for height, text in [*axis_of[key].ticks(), *([] if everywhere else [(_NOT_SET, "not set")])]:
            axes.annotate(
                text,
                (column, height),
                xytext=(6, 0),
                textcoords="offset points",
                fontsize=9,
                va="center",
                zorder=4,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            )
    axes.set_xticks(range(len(keys) + 1), [*(short(key, keys) for key in keys), sweep.config.metric])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(keys) + 0.1)
    figure.colorbar(ScalarMappable(colours, _COLOURS), ax=axes, label=with_unit(sweep.config.metric))
    axes.set_title(f"{sweep.config.name}: {len(rows)} trials, the best one thick", fontsize=11)
    return _save(figure, file)


class _Axis:
    """Where values lie: numbers as they are, on a logarithmic scale if they span much; others side by side."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        self.texts = {text: i for i, text in enumerate(dict.fromkeys(map(number, values)))}
        self.places = [float(v) if self.are_numbers else float(self.texts[number(v)]) for v in values]
        low, high = min(self.places), max(self.places)
        self.is_log = self.are_numbers and low > 0 and high / low >= _LOG_SPAN
        self._low, self._high = low, high

    def label(self, axes: Axes) -> None:
        if self.is_log:
            axes.set_xscale("log")
        if self.are_numbers:
            named = self._named()
            axes.set_xticks(named, [f"{value:.3g}" for value in named])
            axes.minorticks_off()
        else:
            axes.set_xticks(range(len(self.texts)), list(self.texts))
            axes.set_xlim(-0.5, len(self.texts) - 0.5)

    def height(self, value: Any) -> float:
        """From 0 to 1."""
        return self._scale(float(value) if self.are_numbers else float(self.texts[number(value)]))

    def ticks(self) -> list[tuple[float, str]]:
        """Height and text of what is worth naming."""
        if not self.are_numbers:
            return [(self._scale(float(i)), text) for text, i in self.texts.items()]
        return [(self._scale(value), f"{value:.3g}") for value in self._named()]

    def _named(self) -> list[float]:
        """All of few values, else the ends and the middle."""
        values = sorted(set(self.places))
        if len(values) > _MOST_TICKS:
            middle = math.sqrt(self._low * self._high) if self.is_log else (self._low + self._high) / 2
            values = [self._low, middle, self._high]
        return values

    def _scale(self, place: float) -> float:
        low, high = self._low, self._high
        if self.is_log:
            low, high, place = math.log(low), math.log(high), math.log(place)
        return 0.5 if high == low else (place - low) / (high - low)


def _curve_metric(sweep: Sweep, config: RunConfig) -> str:
    """The sweep's metric if steps have it; else what every step of the run's algorithm has."""
    steps = step_metrics(config)
    if sweep.config.metric in steps:
        return sweep.config.metric
    return "reward/mean" if "reward/mean" in steps else f"{config.algorithm.name}/loss"


def _legend(rows: Sequence[Row]) -> str:
    stopped = sum(row.status != "finished" for row in rows)
    crosses = f", {stopped} ended early (grey crosses, last value)" if stopped else ""
    return f"{len(rows) - stopped} finished trials (best: star){crosses}"


def _save(figure: Figure, file: Path) -> Path:
    with replacing(file) as writing:
        figure.savefig(writing, dpi=_DPI, format="png")
    return file
