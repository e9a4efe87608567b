"""Statistics of a comparison, against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from raylign.compare.report.intervals import (
    Interval,
    bootstrap,
    difference,
    length_controlled,
    mean_of,
    over_positive,
    over_seeds,
    ratio,
    t_quantile,
    wins,
)


def test_over_seeds_is_students_t():
    found = over_seeds([1.0, 2.0, 3.0])  # std 1, t(2) 4.303, 4.303 / sqrt(3) = 2.484
    assert (found.value, found.num_seeds) == (2.0, 3)
    assert found.low == pytest.approx(2 - 2.4843, abs=1e-3)
    assert found.high == pytest.approx(2 + 2.4843, abs=1e-3)


def test_one_seed_has_no_interval_and_nothing_is_concluded():
    found = over_seeds([5.0])
    assert not found.known
    assert found.against(0) == "inconclusive"
    assert difference([5.0], [1.0, 1.0]).against(0) == "inconclusive"
    assert over_seeds([]).num_seeds == 0


def test_difference_is_welch():
    # Variances 1 / 3 each, 2 / 3 together: 4 degrees of freedom, 2.776 x sqrt(2 / 3) = 2.267.
    found = difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.high == pytest.approx(4.267, abs=1e-3)
    assert found.against(0) == "inconclusive"
    assert difference([13.0, 14.0, 15.0], [1.0, 2.0, 3.0]).against(0) == "above"
    assert difference([1.0, 2.0, 3.0], [13.0, 14.0, 15.0]).against(0) == "below"


def test_ratios_and_seconds_are_taken_in_logarithms():
    twice = ratio([2.0, 2.0], [1.0, 1.0])
    assert (twice.value, twice.low, twice.high) == pytest.approx((2.0, 2.0, 2.0))
    found = over_positive([1.0, 4.0])
    assert found.value == pytest.approx(2.0)
    assert found.low is not None
    assert found.low > 0
    assert ratio([1.0, 9.0], [3.0, 3.0]).against(1) == "inconclusive"


def test_t_quantiles_come_down_to_the_normal_one():
    assert t_quantile(1) == 12.706
    assert t_quantile(2.9) == t_quantile(2)
    assert t_quantile(0.5) == float("inf")
    assert t_quantile(1000) == pytest.approx(1.9623, abs=2e-3)
    assert t_quantile(31) < t_quantile(30)


def test_wins_count_a_tie_as_half():
    assert wins(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0 + 1e-7, 4.0])).tolist() == [1.0, 0.5, 0.0]


def test_the_bootstrap_draws_seeds_and_prompts():
    same = bootstrap([np.ones(10), np.ones(10)], mean_of, draws=50)
    assert same == Interval(1.0, 1.0, 1.0, 2)
    apart = bootstrap([np.ones(10), np.zeros(10)], mean_of, draws=400)  # both seeds the same: 1 draw in 4 each
    assert (apart.value, apart.low, apart.high) == (0.5, 0.0, 1.0)
    prompts = bootstrap([np.repeat([0.0, 1.0], 50)], mean_of, draws=1000)
    assert prompts.num_seeds == 1
    assert prompts.low == pytest.approx(0.4, abs=0.03)  # 1.96 x sqrt(0.25 / 100) = 0.098
    assert prompts.high == pytest.approx(0.6, abs=0.03)


def _false_finds(seeds_differ: float, *, draw_seeds: bool = True) -> float:
    """How often two methods that are equally good are told apart: 3 seeds whose win rates differ, 64 prompts each."""
    rng, found, comparisons = np.random.default_rng(0), 0, 150
    for _ in range(comparisons):
        rates = np.clip(0.5 + seeds_differ * rng.standard_normal(3), 0, 1)
        columns = [(rng.random(64) < rate).astype(float) for rate in rates]
        told = bootstrap(columns if draw_seeds else [np.concatenate(columns)], mean_of, draws=200)
        found += told.against(0.5) != "inconclusive"
    return found / comparisons


def test_equal_methods_are_seldom_told_apart():
    assert _false_finds(0.0) < 0.03
    assert _false_finds(0.07) < 0.08
    assert _false_finds(0.12) < 0.15  # three seeds that differ so much are too few for the bootstrap to know
    assert _false_finds(0.12, draw_seeds=False) > 0.25, "prompts alone do not know that seeds differ"


def test_what_length_alone_won_is_taken_out():
    # 30 longer ones win 80 %, 10 shorter ones 20 %: 65 % in all, and logit 0 in the middle.
    longer, shorter = [[1.0, 5.0]] * 24 + [[0.0, 5.0]] * 6, [[1.0, -5.0]] * 2 + [[0.0, -5.0]] * 8
    rows = np.array(longer + shorter)
    assert rows[:, 0].mean() == 0.65
    assert length_controlled(rows) == pytest.approx(0.5, abs=0.01)
    shuffled = np.stack([rows[:, 0], np.tile([5.0, -5.0], 20)], axis=1)  # lengths that have nothing to do with it
    assert length_controlled(shuffled) == pytest.approx(0.65, abs=0.06)


def test_length_control_ends_where_wins_and_lengths_separate():
    rows = np.array([[1.0, 3.0], [1.0, 2.0], [0.0, -1.0], [0.0, -2.0]])
    assert 0.2 < length_controlled(rows) < 0.8
    assert length_controlled(np.array([[1.0, 0.0], [0.0, 0.0]])) == 0.5
