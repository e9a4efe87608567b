"""Statistics of a comparison: 95 % intervals, and the conclusions that they allow. Numbers in, numbers out.

- Over seeds: Student's t, because there are few of them. One seed has no interval, and nothing is concluded from it.
- Over prompts (win rates): the percentile bootstrap draws seeds and, within each, prompts, because both vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Answer = Literal["above", "below", "inconclusive"]
NUM_DRAWS = 2000
TIE = 1e-5
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; low and high are None if there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None
    num_seeds: int = 1

    @property
    def known(self) -> bool:
        return self.low is not None and self.high is not None

    def against(self, bar: float) -> Answer:
        """Return on which side of `bar` the whole interval lies."""
        if self.low is None or self.high is None:
            return "inconclusive"
        if self.low > bar:
            return "above"
        return "below" if self.high < bar else "inconclusive"


def t_quantile(freedom: float) -> float:
    """Return the two-sided 95 % quantile of Student's t; degrees are rounded down, which widens the interval.

    >>> t_quantile(2)
    4.303
    """
    if freedom < 1:
        return math.inf
    return _T[int(freedom) - 1] if freedom <= len(_T) else 1.96 + 2.5 / freedom


def over_seeds(values: Sequence[float]) -> Interval:
    """Return the mean of one value per seed, with Student's t interval.

    >>> over_seeds([1.0, 2.0, 3.0]).low is not None
    True
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Interval(math.nan, num_seeds=0)
    mean = sum(known) / len(known)
    if len(known) < 2:
        return Interval(mean, num_seeds=len(known))
    half = t_quantile(len(known) - 1) * float(np.std(known, ddof=1)) / math.sqrt(len(known))
    return Interval(mean, mean - half, mean + half, len(known))


def over_positive(values: Sequence[float]) -> Interval:
    """Return the geometric mean of one positive value per seed, such as seconds: Student's t on the logarithms."""
    logs = over_seeds([math.log(value) for value in values])
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Interval(math.exp(logs.value), low, high, logs.num_seeds)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Return the ratio of the geometric means of positive values, one per seed: Welch's t on the logarithms."""
    logs = difference([math.log(value) for value in ours], [math.log(value) for value in theirs])
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Interval(math.exp(logs.value), low, high, logs.num_seeds)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Return the mean of ours minus that of theirs, with Welch's t, because their variances may differ."""
    value = float(np.mean(ours) - np.mean(theirs))
    num_seeds = min(len(ours), len(theirs))
    if num_seeds < 2:
        return Interval(value, num_seeds=num_seeds)
    parts = [float(np.var(one, ddof=1)) / len(one) for one in (ours, theirs)]
    variance = sum(parts)
    if variance == 0:
        return Interval(value, value, value, num_seeds)
    freedom = variance**2 / sum(p**2 / (len(one) - 1) for p, one in zip(parts, (ours, theirs), strict=True))
    half = t_quantile(freedom) * math.sqrt(variance)
    return Interval(value, value - half, value + half, num_seeds)


def wins(ours: Floats, theirs: Floats) -> Floats:
    """Return for each prompt 1 if our score is higher, 0.5 for a tie (up to fp32 noise), else 0: [P]."""
    gap = ours - theirs
    return np.where(np.abs(gap) <= TIE, 0.5, gap > 0)


def bootstrap(
    columns: Sequence[Floats], statistic: Callable[[Floats], float], *, seed: int = 0, draws: int = NUM_DRAWS
) -> Interval:
    """Return a statistic of the prompts of all seeds, with the percentile bootstrap over seeds and prompts.

    Args:
        columns: [P, ...] for each seed, a row for each prompt; the same prompts in all.
    Returns:
        With one seed the interval covers only its prompts: it says nothing about other seeds, and `num_seeds` is 1.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        chosen = rng.integers(len(columns), size=len(columns))
        rows = rng.integers(len(columns[0]), size=len(columns[0]))
        drawn.append(statistic(np.concatenate([columns[i][rows] for i in chosen])))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(statistic(np.concatenate(list(columns))), float(low), float(high), len(columns))


def mean_of(column: Floats) -> float:
    return float(column.mean())


def length_controlled(rows: Floats) -> float:
    """Return the win rate at equal length: the logistic regression of the wins on the difference of lengths, evaluated
    at a difference of 0 (as in Dubois et al. 2024, section 3, with only the length term).

    Args:
        rows: [N, 2] of win (0, 0.5 or 1) and our length minus theirs.
    """
    won, longer = rows[:, 0], rows[:, 1]
    spread = float(longer.std())
    if spread == 0 or won.min() == won.max():
        return float(won.mean())
    design = np.stack([np.ones_like(longer), np.tanh(longer / spread)], axis=1)
    weights = np.zeros(2)
    ridge = np.diag([1e-3, 1e-3])  # worth one row: if length separates wins from losses, the fit diverges without it
    for _ in range(30):
        p = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (won - p) - ridge @ weights
        curvature = (design * (p * (1 - p))[:, None]).T @ design + ridge
        step = np.linalg.solve(curvature, gradient)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return float(1 / (1 + math.exp(-weights[0])))
