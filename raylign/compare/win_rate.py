"""How often one policy's completions are better than others of the same prompts, with intervals, and at equal length.

    wins_i  = 1 if scores_i > references_i, 1/2 if they tie, else 0
    rate    = mean of wins
    at equal length: the wins are fitted by a logistic regression on the difference of lengths,
              P(win_i) = sigmoid(a + b d_i / s),  d_i = length_i - reference length_i,  s = root mean square of d
              and the rate is sigmoid(a): what it would be at d = 0 (as in Dubois et al. 2024, arXiv 2404.04475)

Intervals are percentile bootstraps over the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raylign.errors import UserError

Float64Array = NDArray[np.float64]

TIE = 1e-5
"""Scores that differ by no more are equal: those of an evaluation have been through fp32, references may not have."""

_PRIOR = 0.5
_NEWTON_STEPS = 50
_LARGEST_STEP = 2.0


@dataclass(frozen=True)
class WinRate:
    """A share of comparisons won, between 0 and 1, with its interval."""

    rate: float
    low: float
    high: float
    num: int  # prompts compared
    extrapolated: bool = (
        False  # at equal length, though every completion is longer than its rival, or every one shorter
    )

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wins(scores: ArrayLike, references: ArrayLike, tie: float = TIE) -> Float64Array:
    """1 where the score is above the reference's, 0.5 where they differ by `tie` at most, else 0: [N].

    >>> wins([1.0, 2.0, 3.0], [0.5, 2.0, 3.5])
    array([1. , 0.5, 0. ])

    Raises:
        UserError: nothing to compare, not one reference for each score, or a score that is not finite.
    """
    ours, theirs = _numbers(scores, "scores"), _numbers(references, "reference scores")
    if ours.shape != theirs.shape:
        raise UserError(f"win rate: {len(ours)} scores against {len(theirs)} reference scores; give one for each")
    gap = ours - theirs
    return np.where(np.abs(gap) <= tie, 0.5, gap > 0)


def win_rate(
    scores: ArrayLike, references: ArrayLike, *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> WinRate:
    """The share of prompts on which `scores` beat `references`, a tie counting a half. Both are [N]; see `wins`.

    Args:
        confidence: of the interval.
        num_resamples: of the bootstrap, from `seed`.
    """
    won = wins(scores, references)
    rates = _resamples(len(won), num_resamples, seed) @ won / len(won)
    return WinRate(float(won.mean()), *_interval(rates, confidence), num=len(won))


def length_controlled_win_rate(
    scores: ArrayLike,
    references: ArrayLike,
    lengths: ArrayLike,
    reference_lengths: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> WinRate:
    """The win rate at equal length, by the regression above. All are [N]; lengths are in words or tokens, of any unit.

    Half a win and half a loss at equal length, and a standard normal prior on the slope, keep the fit finite where every
    comparison is won or length decides them all; they weigh no more than one prompt does. Where `extrapolated` is true
    no two completions are of about equal length, and the rate says little.
    """
    won = wins(scores, references)
    difference = _numbers(lengths, "lengths") - _numbers(reference_lengths, "reference lengths")
    if difference.shape != won.shape:
        raise UserError(f"win rate: {len(difference)} lengths for {len(won)} scores; give one for each")
    scale = np.sqrt(np.mean(difference**2))
    x = difference / scale if scale > 0 else difference
    once = np.ones((1, len(won)))
    rates = _rates_at_equal_length(won, x, np.concatenate([once, _resamples(len(won), num_resamples, seed)]))
    apart = bool(difference.min() > 0 or difference.max() < 0)
    return WinRate(float(rates[0]), *_interval(rates[1:], confidence), num=len(won), extrapolated=apart)


def _rates_at_equal_length(won: Float64Array, x: Float64Array, counts: Float64Array) -> Float64Array:
    """sigmoid(a) of each row of `counts` [B, N], how often each comparison counts: Newton's method, all rows at once."""
    a, b = np.zeros(len(counts)), np.zeros(len(counts))
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(a[:, None] + b[:, None] * x)  # [B, N]
        at_zero = _sigmoid(a)
        residual = counts * (won - p)
        weight = counts * p * (1 - p)
        gradient_a = residual.sum(1) + _PRIOR * (1 - 2 * at_zero)  # half a win and half a loss
        gradient_b = residual @ x - b
        aa = weight.sum(1) + 2 * _PRIOR * at_zero * (1 - at_zero)
        ab, bb = weight @ x, weight @ x**2 + 1.0
        determinant = aa * bb - ab**2
        step_a = (bb * gradient_a - ab * gradient_b) / determinant
        step_b = (aa * gradient_b - ab * gradient_a) / determinant
        a += np.clip(step_a, -_LARGEST_STEP, _LARGEST_STEP)
        b += np.clip(step_b, -_LARGEST_STEP, _LARGEST_STEP)
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-9:
            break
    return _sigmoid(a)


def _sigmoid(x: Float64Array) -> Float64Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # no overflow


def _resamples(num: int, num_resamples: int, seed: int) -> Float64Array:
    """How often each prompt is drawn in each resample: [B, N], rows sum to N."""
    if num_resamples < 1:
        raise UserError(f"win rate: num_resamples {num_resamples} gives no interval; set it to 1000 or so")
    return np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=num_resamples).astype(np.float64)


def _interval(rates: Float64Array, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise UserError(f"win rate: confidence {confidence} is not between 0 and 1; set it to 0.95 or so")
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _numbers(values: ArrayLike | Sequence[float | None], what: str) -> Float64Array:
    array = np.array(values, dtype=np.float64)  # None becomes NaN
    if array.ndim != 1 or len(array) == 0:
        raise UserError(f"win rate: no {what} to compare; evaluate on at least one prompt")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise UserError(f"win rate: {what}[{row}] is {array[row]}; leave out the prompts that have no score")
    return array
