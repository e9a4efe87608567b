"""The picture of a comparison on the exact task: what each policy gains for how far it moved, and the limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylign.compare.exact.runs import ExactRecord

_MARKERS = "osD^vP*X"


def draw(rows: Sequence[ExactRecord], optimum: Sequence[tuple[float, float]], folder: Path, title: str) -> list[Path]:
    """`frontier.png` and `frontier.svg` in `folder`: a point a run, the optimum as a line, one panel.

    Args:
        optimum: (KL in nats, reward) along the frontier.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*sorted(optimum), strict=True), color="black", linewidth=1.2, label="optimum, every beta", zorder=1)
    betas = sorted({row.beta for row in rows}, reverse=True)
    for i, algorithm in enumerate(dict.fromkeys(row.algorithm for row in rows)):
        mine = [row for row in rows if row.algorithm == algorithm]
        axes.scatter(
            [row.kl for row in mine],
            [row.reward for row in mine],
            marker=_MARKERS[i % len(_MARKERS)],
            color=f"C{i}",
            s=34,
            alpha=0.75,
            label=algorithm,
            zorder=2,
        )
    for beta in betas:  # where the optimum of each beta lies: the furthest best run stands nearest to it
        best = max((row for row in rows if row.beta == beta), key=lambda row: row.fraction_of_optimum)
        axes.annotate(f"beta {beta:g}", (best.kl, best.reward), textcoords="offset points", xytext=(6, -12), fontsize=8)
    start = rows[0].J_ref
    axes.plot([0], [start], marker="o", color="black", markersize=5)
    axes.annotate("reference", (0, start), textcoords="offset points", xytext=(6, 4), fontsize=8)
    widest = max(row.kl for row in rows)
    axes.set_xlim(left=-0.02 * widest, right=1.12 * widest)
    seen = [row.reward for row in rows] + [reward for kl, reward in optimum if kl < 1.12 * widest] + [start]
    margin = 0.06 * (max(seen) - min(seen))
    axes.set_ylim(min(seen) - margin, max(seen) + margin)
    axes.set_xlabel("KL to the reference (nats per completion, exact)")
    axes.set_ylabel("reward (mean over completions, exact)")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.25)
    files = [folder / f"frontier.{kind}" for kind in ("png", "svg")]
    for file in files:
        figure.savefig(file, dpi=150)
    return files
