"""Statistics of a comparison: 95 % intervals, and what they allow to be said. Numbers in, numbers out.

- Over seeds: Student's t, for there are few of them. One seed has no interval, and nothing is concluded from it.
- Over prompts (win rates): the percentile bootstrap, which draws seeds and, within each, prompts: both vary.
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
    """An estimate with its 95 % interval; low and high are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None
    num_seeds: int = 1

    @property
    def known(self) -> bool:
        return self.low is not None and self.high is not None

    def against(self, bar: float) -> Answer:
        """Whether the quantity is above or below `bar`, as far as the interval tells."""
        if self.low is None or self.high is None:
            return "inconclusive"
        if self.low > bar:
            return "above"
        return "below" if self.high < bar else "inconclusive"


def t_quantile(freedom: float) -> float:
    """Two-sided 95 %; of a broken number of degrees, that of the next lower whole one, which is wider.

    >>> t_quantile(2)
    4.303
    """
    if freedom < 1:
        return math.inf
    return _T[int(freedom) - 1] if freedom <= len(_T) else 1.96 + 2.5 / freedom


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean, with Student's t over the values, one a seed.

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
    """Geometric mean of positive values, one a seed, such as seconds: Student's t on their logarithms."""
    logs = over_seeds([math.log(value) for value in values])
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Interval(math.exp(logs.value), low, high, logs.num_seeds)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Geometric mean of ours over that of theirs, positive values, one a seed; Welch's t on the logarithms."""
    logs = difference([math.log(value) for value in ours], [math.log(value) for value in theirs])
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Interval(math.exp(logs.value), low, high, logs.num_seeds)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Mean of ours less that of theirs, with Welch's t: the two may vary unequally."""
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
    """For each prompt 1 where ours has the higher score, 0.5 where both have the same (as far as fp32 tells), else 0: [P]."""
    gap = ours - theirs
    return np.where(np.abs(gap) <= TIE, 0.5, gap > 0)


def bootstrap(
    columns: Sequence[Floats], statistic: Callable[[Floats], float], *, seed: int = 0, draws: int = NUM_DRAWS
) -> Interval:
    """A statistic of all seeds' prompts together, with the percentile bootstrap over seeds and prompts.

    Args:
        columns: of each seed [P, ...], a row a prompt; the same prompts in all.
    Returns:
        With one seed the interval is over its prompts alone: it says nothing of other seeds, and `num_seeds` is 1.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = rng.integers(len(columns), size=len(columns))
        rows = rng.integers(len(columns[0]), size=len(columns[0]))
        found.append(statistic(np.concatenate([columns[i][rows] for i in chosen])))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(statistic(np.concatenate(list(columns))), float(low), float(high), len(columns))


def mean_of(column: Floats) -> float:
    return float(column.mean())


def length_controlled(rows: Floats) -> float:
    """Win rate that would be there at equal length: the logistic regression of the wins on how much longer ours is,
    read at no difference (as in Dubois et al. 2024, section 3, with the length term alone).

    Args:
        rows: [N, 2] of win (0, 0.5 or 1) and length of ours less that of theirs.
    """
    won, longer = rows[:, 0], rows[:, 1]
    spread = float(longer.std())
    if spread == 0 or won.min() == won.max():
        return float(won.mean())
    design = np.stack([np.ones_like(longer), np.tanh(longer / spread)], axis=1)
    weights = np.zeros(2)
    ridge = np.diag([1e-3, 1e-3])  # of one row: where wins and lengths separate, the fit has no end
    for _ in range(30):
        p = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (won - p) - ridge @ weights
        curvature = (design * (p * (1 - p))[:, None]).T @ design + ridge
        step = np.linalg.solve(curvature, gradient)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return float(1 / (1 + math.exp(-weights[0])))
