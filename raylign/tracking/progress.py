"""Progress and metrics of a run as numbers and short strings, which the views draw."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping

from raylign.config.traits import Headline

# Shown where reported, around the headline metrics that the run's algorithm names: (metric, label).
BEFORE_HEADLINE = (("reward/std", "reward std"), ("kl/k1", "kl"))
AFTER_HEADLINE = (
    ("policy/entropy", "entropy"),
    ("policy/clip_fraction", "clipped"),
    ("critic/loss", "critic loss"),
    ("completion/length", "length"),
    ("optimizer/grad_norm", "grad norm"),
    ("optimizer/lr", "lr"),
)
# Sections of a step in the order they happen; other time/* metrics follow them.
SECTIONS = (
    "generate",
    "score",
    "logprobs",
    "ref_logprobs",
    "values",
    "update_policy",
    "update_critic",
    "sync",
    "save",
)
BLOCKS = "▁▂▃▄▅▆▇█"
ETA_WINDOW = 20


class Progress:
    """State that a view draws.

    Args:
        headline: the metrics that matter most to the run's algorithm; the first of them is its main metric.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        first_step: int = 0,
        *,
        headline: Headline,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.total_steps = total_steps
        self.headline = headline
        self.step = first_step
        self.metrics: dict[str, float] = {}
        self.history: dict[str, list[float]] = {}
        self.status = "starting"
        self._clock = clock
        self._began = self._status_began = clock()
        self._finished: deque[tuple[float, int]] = deque(maxlen=ETA_WINDOW)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record that `step` steps are done; metrics of earlier steps stay until they are reported again."""
        self.step = step
        # A new dict: the drawing thread may be reading the old one.
        self.metrics = {**self.metrics, **metrics}
        for name, _ in (*self.headline[:1], *self._side_metrics):
            if name in metrics and math.isfinite(metrics[name]):
                self.history.setdefault(name, []).append(float(metrics[name]))
        if not self._finished or step > self._finished[-1][1]:
            self._finished.append((self._clock(), step))

    def set_status(self, text: str) -> None:
        self.status = text
        self._status_began = self._clock()

    @property
    def elapsed(self) -> float:
        return self._clock() - self._began

    @property
    def status_elapsed(self) -> float:
        return self._clock() - self._status_began

    @property
    def eta(self) -> float | None:
        """Seconds to the last step at the pace of recent steps, None before the first step."""
        if not self._finished:
            return None
        (began, first), (ended, last) = self._finished[0], self._finished[-1]
        # After one step its own time is the best guess; the start-up before the step is not part of the pace.
        pace = (ended - began) / (last - first) if last > first else self.metrics.get("time/step")
        if pace is None or not math.isfinite(pace):
            return None
        return max(0.0, pace * (self.total_steps - last) - (self._clock() - ended))

    @property
    def tokens_per_second(self) -> float | None:
        return self.metrics.get("throughput/tokens_per_second")

    @property
    def main(self) -> tuple[str, str] | None:
        """(metric, label) of the main metric, None before it is reported."""
        return next((row for row in self.headline[:1] if row[0] in self.metrics), None)

    @property
    def _side_metrics(self) -> Headline:
        return BEFORE_HEADLINE + self.headline[1:] + AFTER_HEADLINE

    @property
    def side(self) -> list[tuple[str, str]]:
        return [row for row in self._side_metrics if row[0] in self.metrics]

    @property
    def sections(self) -> list[tuple[str, float]]:
        """(section, its seconds in the last step); sections may overlap, so they need not add up to the step."""
        times = {name.removeprefix("time/"): value for name, value in self.metrics.items() if name.startswith("time/")}
        others = [name for name in times if name not in SECTIONS and name not in ("step", "idle_fraction")]
        return [(name, times[name]) for name in (*SECTIONS, *others) if math.isfinite(times.get(name, math.nan))]


def format_seconds(seconds: float) -> str:
    """Format a duration: 14 ms, 8.1 s, 1:20, 2:03:00, 3d 04h."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 59.95 else format_clock(seconds)


def format_clock(seconds: float) -> str:
    """Format a duration in whole seconds: 0:07, 1:20, 2:03:00, 3d 04h."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_value(value: float) -> str:
    """Format a metric so that its width changes little with its value: 0.523, 12.3, 5,123, 1.0e-06; counts in full."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        return f"{value:.1e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"


def sparkline(values: list[float], width: int) -> str:
    """Draw the whole history in at most `width` characters, each the mean of an equal share of the values.

    >>> sparkline([0, 1, 2, 3], 4), sparkline([0, 0, 7, 7], 2)
    ('▁▃▆█', '▁█')
    """
    num_bins = min(width, len(values))
    edges = [len(values) * i // num_bins for i in range(num_bins + 1)] if num_bins else []
    bins = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    if not bins:
        return ""
    low, span = min(bins), max(bins) - min(bins)
    # A flat line is drawn in the middle: at the bottom it would look like zero.
    return "".join(BLOCKS[round((b - low) / span * 7)] if span else BLOCKS[3] for b in bins)
