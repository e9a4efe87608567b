"""Shared drawing helpers of the figures: colours, intervals as bars, files."""

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
_LABEL_OFFSETS = ((6, -11), (6, 5), (-6, -11), (-6, 5), (6, -21), (6, 15), (-6, -21), (-6, 15))  # points


def new_figure(width: float = 7.5, height: float = 4.8) -> Figure:
    """Make an empty figure; sizes are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def style(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each method, the same in every figure."""
    return {
        label: {"color": f"C{i % 10}", "marker": MARKERS[i % len(MARKERS)]}
        for i, label in enumerate(dict.fromkeys(labels))
    }


def cross(axes: Any, x: Interval, y: Interval, **kind: Any) -> None:
    """Draw a point with the intervals of both coordinates, if they are known."""
    axes.errorbar([x.value], [y.value], xerr=_ends(x), yerr=_ends(y), capsize=2, elinewidth=1, linestyle="none", **kind)


def along(axes: Any, xs: Sequence[float], ys: Sequence[Interval], **kind: Any) -> None:
    """Draw a line through points with intervals in y."""
    axes.plot(xs, [y.value for y in ys], **kind)
    for x, y in zip(xs, ys, strict=True):
        if y.low is not None and y.high is not None:
            axes.plot([x, x], [y.low, y.high], color=kind.get("color"), linewidth=1)


def frame(axes: Any, xs: Sequence[Interval], ys: Sequence[Interval], *, x_from: float | None = None) -> None:
    """Set limits that show every point; intervals are cut where they would squeeze the points together.

    Args:
        x_from: lower end of the x axis, if nothing lies below it.
    """
    for intervals, set_limits in ((xs, axes.set_xlim), (ys, axes.set_ylim)):
        points = [one.value for one in intervals if math.isfinite(one.value)]
        if not points:
            continue
        span = max(points) - min(points) or abs(points[0]) or 1.0
        ends = [end for one in intervals if one.known for end in (one.low, one.high) if end is not None]
        low = max(min([*points, *ends]), min(points) - span)
        high = min(max([*points, *ends]), max(points) + span)
        margin = 0.08 * (high - low)
        set_limits(low - margin, high + margin)
    if x_from is not None:
        axes.set_xlim(left=x_from)


def name_points(axes: Any, names: Sequence[tuple[str, float, float]]) -> None:
    """Write a small text beside each point (text, x, y), where it covers no other text or point.

    Call it after the limits of the axes are set.
    """
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.draw_without_rendering()
    half = 3.5 * figure.dpi / 72  # size of a point's marker
    centres = [axes.transData.transform((x, y)) for _, x, y in names]
    taken: list[Any] = [Bbox([centre - half, centre + half]) for centre in centres]
    for text, x, y in names:
        for right, up in _LABEL_OFFSETS:
            made = axes.annotate(
                text,
                (x, y),
                textcoords="offset points",
                xytext=(right, up),
                fontsize=7,
                ha="left" if right > 0 else "right",
            )
            box = made.get_window_extent()
            if (right, up) == _LABEL_OFFSETS[-1] or not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            made.remove()


def finish(axes: Any, *, x: str, y: str, title: str = "", legend: bool = True) -> None:
    """Add labels, title, grid and legend."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, framealpha=0.8, edgecolor="none")


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Save `name.png` and `name.svg`; return the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"{name}.{kind}", dpi=130)
    return folder / f"{name}.png"


def by_setting(group: Group) -> str:
    """Format the setting without the method, e.g. `beta 0.1`."""
    keys = list(group.setting)
    if len(keys) == 1:
        return f"{keys[0]} {group.setting[keys[0]]:g}"
    return group.title.removeprefix(f"{group.label}, ")


def _ends(interval: Interval) -> list[list[float]] | None:
    if interval.low is None or interval.high is None:
        return None
    return [[interval.value - interval.low], [interval.high - interval.value]]
