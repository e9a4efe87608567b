"""Figures of a sweep: the metric against each parameter, learning curves, and parallel coordinates."""

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
from raylign.config.metrics import step_metrics
from raylign.config.search_space import Sweep
from raylign.files import replacing
from raylign.storage.run_folder import RunFolder
from raylign.tuning.results import TrialRecord, best_record, format_value, format_values, searched_keys, short_key

_DPI = 150
_LOG_SPAN = 10  # an axis is logarithmic if its largest value is at least this many times its smallest
_MOST_TICKS = 6  # an axis labels all values up to this many
_MOST_LABELS = 10  # the legend names all trials up to this many
_COLOURS = mpl.colormaps["viridis"]
_BEST = "tab:red"
_NOT_SET = -0.15  # height, on the axis of a key, of trials without that key


def plot_sweep(sweep: Sweep, records: Sequence[TrialRecord], folder: Path) -> list[Path]:
    """Write the figures for which there is data, as PNG; return their files."""
    known = [record for record in records if record.metric is not None]
    keys = [key for key in searched_keys(list(records)) if len({str(record.values.get(key)) for record in known}) > 1]
    if not known:
        return []
    files = [_learning_curves(sweep, records, folder / "learning_curves.png")]
    if keys:
        files.insert(0, _against_parameters(sweep, known, keys, folder / "metric_by_parameter.png"))
    if len(keys) > 2:
        files.append(_parallel(sweep, known, keys, folder / "parallel_coordinates.png"))
    return [file for file in files if file is not None]


def with_unit(metric: str) -> str:
    """Return a metric with its unit: `kl/k1 (nats per sequence)`."""
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


def _against_parameters(sweep: Sweep, records: Sequence[TrialRecord], keys: list[str], file: Path) -> Path:
    """Plot the metric against each searched key, one panel per key."""
    best = best_record(list(records), sweep.config.mode)
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure = Figure((max(4.6 * columns, 5.5), 3.6 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, key in zip(panels, keys, strict=False):
        trials = [record for record in records if key in record.values]
        axis = _Axis([record.values[key] for record in trials])
        for record, position in zip(trials, axis.positions, strict=True):
            is_best = record is best
            axes.plot(
                position,
                record.metric,
                "*" if is_best else "o" if record.status == "finished" else "x",
                color=_BEST if is_best else "tab:blue" if record.status == "finished" else "tab:gray",
                markersize=13 if is_best else 6,
                zorder=3 if is_best else 2,
            )
        axis.label(axes)
        axes.set_xlabel(short_key(key, keys))
        axes.grid(alpha=0.3)
    for axes in panels[len(keys) :]:
        axes.remove()
    for i in range(0, len(keys), columns):
        panels[i].set_ylabel(with_unit(sweep.config.metric))
    figure.suptitle(f"{sweep.config.name}: {_legend(records)}", fontsize=11)
    return _save(figure, file)


def _learning_curves(sweep: Sweep, records: Sequence[TrialRecord], file: Path) -> Path | None:
    """Plot a metric over the steps of each trial, one panel per metric, since algorithms report different ones."""
    metric_by_trial = {spec.id: _curve_metric(sweep, spec.config) for spec in sweep.trials}
    curves: dict[str, list[tuple[int, TrialRecord, list[dict[str, Any]]]]] = {}
    for i, record in enumerate(records):
        metric = metric_by_trial[record.id]
        steps = [step for step in RunFolder(record.folder).metrics() if step.get(metric) is not None]
        if steps:
            curves.setdefault(metric, []).append((i, record, steps))
    if not curves:
        return None
    best = best_record(list(records), sweep.config.mode)
    named = len(records) <= _MOST_LABELS
    figure = Figure((8.5 if len(curves) == 1 else 5.5 * len(curves), 5.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (metric, trials) in zip(panels, curves.items(), strict=True):
        for i, record, steps in trials:
            axes.plot(
                [step["step"] for step in steps],
                [step[metric] for step in steps],
                color=_BEST if record is best else _COLOURS(0.05 + 0.85 * i / max(1, len(records) - 1)),
                linewidth=2.4 if record is best else 1.3,
                alpha=1.0 if record is best or named else 0.6,
                zorder=3 if record is best else 2,
                marker="." if len(steps) < 30 else None,
                label=f"{record.id}: {format_values(record.values)}" if record is best or named else None,
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(with_unit(metric))
        axes.grid(alpha=0.3)
    total = sum(map(len, curves.values()))
    figure.suptitle(f"{sweep.config.name}: {total} trials, the best in red", fontsize=11)
    figure.legend(loc="outside lower center", fontsize=8, ncols=2 if total > 4 else 1)
    return _save(figure, file)


def _parallel(sweep: Sweep, records: Sequence[TrialRecord], keys: list[str], file: Path) -> Path:
    """Plot each trial as a line through the values of its keys to its metric, which also sets its colour.

    If only some trials have a key (`when`), the lines of the others pass below the key's values.
    """
    figure = Figure((2.2 * (len(keys) + 1) + 1.5, 4.8), layout="constrained")
    axes = figure.subplots()
    metrics = [record.metric or 0.0 for record in records]
    colours = Normalize(min(metrics), max(metrics) + 1e-12)
    axis_of = {key: _Axis([record.values[key] for record in records if key in record.values]) for key in keys}
    best = best_record(list(records), sweep.config.mode)
    for record, metric in zip(records, metrics, strict=True):
        heights = [axis_of[key].height(record.values[key]) if key in record.values else _NOT_SET for key in keys]
        heights.append(float(colours(metric)))
        axes.plot(
            range(len(keys) + 1),
            heights,
            color=_COLOURS(colours(metric)),
            linewidth=3 if record is best else 1.4,
            alpha=1 if record is best else 0.75,
            marker=".",
        )
    for column, key in enumerate(keys):
        axes.axvline(column, color="black", linewidth=0.8)
        everywhere = all(key in record.values for record in records)
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
    axes.set_xticks(range(len(keys) + 1), [*(short_key(key, keys) for key in keys), sweep.config.metric])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(keys) + 0.1)
    figure.colorbar(ScalarMappable(colours, _COLOURS), ax=axes, label=with_unit(sweep.config.metric))
    axes.set_title(f"{sweep.config.name}: {len(records)} trials, the best in bold", fontsize=11)
    return _save(figure, file)


class _Axis:
    """Positions of values on an axis: numbers on a linear or logarithmic scale, other values side by side."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        self.texts = {text: i for i, text in enumerate(dict.fromkeys(map(format_value, values)))}
        self.positions = [float(v) if self.are_numbers else float(self.texts[format_value(v)]) for v in values]
        low, high = min(self.positions), max(self.positions)
        self.is_log = self.are_numbers and low > 0 and high / low >= _LOG_SPAN
        self._low, self._high = low, high

    def label(self, axes: Axes) -> None:
        """Set the scale and the tick labels of the x axis."""
        if self.is_log:
            axes.set_xscale("log")
        if self.are_numbers:
            values = self._labelled()
            axes.set_xticks(values, [f"{value:.3g}" for value in values])
            axes.minorticks_off()
        else:
            axes.set_xticks(range(len(self.texts)), list(self.texts))
            axes.set_xlim(-0.5, len(self.texts) - 0.5)

    def height(self, value: Any) -> float:
        """Return the relative position of a value, from 0 to 1."""
        return self._scale(float(value) if self.are_numbers else float(self.texts[format_value(value)]))

    def ticks(self) -> list[tuple[float, str]]:
        """Return height and text of each labelled value."""
        if not self.are_numbers:
            return [(self._scale(float(i)), text) for text, i in self.texts.items()]
        return [(self._scale(value), f"{value:.3g}") for value in self._labelled()]

    def _labelled(self) -> list[float]:
        """Return the numbers to label: all if they are few, else the ends and the middle."""
        values = sorted(set(self.positions))
        if len(values) > _MOST_TICKS:
            middle = math.sqrt(self._low * self._high) if self.is_log else (self._low + self._high) / 2
            values = [self._low, middle, self._high]
        return values

    def _scale(self, position: float) -> float:
        low, high = self._low, self._high
        if self.is_log:
            low, high, position = math.log(low), math.log(high), math.log(position)
        return 0.5 if high == low else (position - low) / (high - low)


def _curve_metric(sweep: Sweep, config: RunConfig) -> str:
    """Return the metric to plot over steps: the sweep's metric if steps report it, else one that the algorithm reports."""
    steps = step_metrics(config)
    if sweep.config.metric in steps:
        return sweep.config.metric
    return "reward/mean" if "reward/mean" in steps else f"{config.algorithm.name}/loss"


def _legend(records: Sequence[TrialRecord]) -> str:
    stopped = sum(record.status != "finished" for record in records)
    crosses = f", {stopped} not finished (grey crosses, last value)" if stopped else ""
    return f"{len(records) - stopped} finished trials (best: star){crosses}"


def _save(figure: Figure, file: Path) -> Path:
    with replacing(file) as writing:
        figure.savefig(writing, dpi=_DPI, format="png")
    return file
