"""What the figures of a report share: colours, intervals as bars, files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylign.compare.report.groups import Group
from raylign.compare.report.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X"
INTERVALS = "bars: 95 % t interval over seeds"
_BESIDE = ((6, -11), (6, 5), (-6, -11), (-6, 5), (6, -21), (6, 15), (-6, -21), (-6, 15))  # points


def new_figure(width: float = 7.5, height: float = 4.8) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method, the same in every figure."""
    return {
        label: {"color": f"C{i % 10}", "marker": MARKERS[i % len(MARKERS)]}
        for i, label in enumerate(dict.fromkeys(labels))
    }


def cross(axes: Any, x: Interval, y: Interval, **kind: Any) -> None:
    """A point with the intervals of both coordinates, where they are known."""
    axes.errorbar([x.value], [y.value], xerr=_ends(x), yerr=_ends(y), capsize=2, elinewidth=1, linestyle="none", **kind)


def along(axes: Any, xs: Sequence[float], ys: Sequence[Interval], **kind: Any) -> None:
    """A line through points with intervals in y."""
    axes.plot(xs, [y.value for y in ys], **kind)
    for x, y in zip(xs, ys, strict=True):
        if y.low is not None and y.high is not None:
            axes.plot([x, x], [y.low, y.high], color=kind.get("color"), linewidth=1)


def frame(axes: Any, xs: Sequence[Interval], ys: Sequence[Interval], *, x_from: float | None = None) -> None:
    """Limits that show every point, and of the intervals as much as leaves the points apart: two seeds have long ones.

    Args:
        x_from: where the x axis begins, if nothing lies below it.
    """
    for of, put in ((xs, axes.set_xlim), (ys, axes.set_ylim)):
        points = [one.value for one in of if math.isfinite(one.value)]
        if not points:
            continue
        span = max(points) - min(points) or abs(points[0]) or 1.0
        ends = [end for one in of if one.known for end in (one.low, one.high) if end is not None]
        low = max(min([*points, *ends]), min(points) - span)
        high = min(max([*points, *ends]), max(points) + span)
        margin = 0.08 * (high - low)
        put(low - margin, high + margin)
    if x_from is not None:
        axes.set_xlim(left=x_from)


def name_points(axes: Any, names: Sequence[tuple[str, float, float]]) -> None:
    """A small text beside each point (text, x, y), where it covers no other text and no point. After the limits of the
    axes are set."""
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.draw_without_rendering()
    half = 3.5 * figure.dpi / 72  # of a point's mark
    centres = [axes.transData.transform((x, y)) for _, x, y in names]
    taken: list[Any] = [Bbox([centre - half, centre + half]) for centre in centres]
    for text, x, y in names:
        for right, up in _BESIDE:
            made = axes.annotate(
                text,
                (x, y),
                textcoords="offset points",
                xytext=(right, up),
                fontsize=7,
                ha="left" if right > 0 else "right",
            )
            box = made.get_window_extent()
            if (right, up) == _BESIDE[-1] or not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            made.remove()


def finish(axes: Any, *, x: str, y: str, title: str = "", legend: bool = True) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, framealpha=0.8, edgecolor="none")


def save(figure: Figure, folder: Path, name: str) -> Path:
    """`name.png` and `name.svg`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"{name}.{kind}", dpi=130)
    return folder / f"{name}.png"


def by_setting(group: Group) -> str:
    """The setting alone, short: `0.1` for a beta that is the only one."""
    keys = list(group.setting)
    if len(keys) == 1:
        return f"{keys[0]} {group.setting[keys[0]]:g}"
    return group.title.removeprefix(f"{group.label}, ")


def _ends(interval: Interval) -> list[list[float]] | None:
    if interval.low is None or interval.high is None:
        return None
    return [[interval.value - interval.low], [interval.high - interval.value]]
