"""The picture of a comparison on the exact task: reward against KL for each policy, and the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylign.compare.exact.records import ExactRecord

_MARKERS = "osD^vP*X"


def draw(
    records: Sequence[ExactRecord], optimum: Sequence[tuple[float, float]], folder: Path, title: str
) -> list[Path]:
    """Draw a point for each run and the optimum as a line; save `frontier.png` and `frontier.svg` in `folder`.

    Args:
        optimum: (KL in nats, reward) along the frontier.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*sorted(optimum), strict=True), color="black", linewidth=1.2, label="optimum, every beta", zorder=1)
    betas = sorted({record.beta for record in records}, reverse=True)
    for i, algorithm in enumerate(dict.fromkeys(record.algorithm for record in records)):
        mine = [record for record in records if record.algorithm == algorithm]
        axes.scatter(
            [record.kl for record in mine],
            [record.reward for record in mine],
            marker=_MARKERS[i % len(_MARKERS)],
            color=f"C{i}",
            s=34,
            alpha=0.75,
            label=algorithm,
            zorder=2,
        )
    for beta in betas:  # label each beta at its best run, which is closest to the optimum
        best = max((record for record in records if record.beta == beta), key=lambda record: record.fraction_of_optimum)
        axes.annotate(f"beta {beta:g}", (best.kl, best.reward), textcoords="offset points", xytext=(6, -12), fontsize=8)
    start = records[0].J_ref
    axes.plot([0], [start], marker="o", color="black", markersize=5)
    axes.annotate("reference", (0, start), textcoords="offset points", xytext=(6, 4), fontsize=8)
    widest = max(record.kl for record in records)
    axes.set_xlim(left=-0.02 * widest, right=1.12 * widest)
    seen = [record.reward for record in records] + [reward for kl, reward in optimum if kl < 1.12 * widest] + [start]
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
