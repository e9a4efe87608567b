"""Win rates by hand, their intervals, and what length alone can win."""

from __future__ import annotations

import json

import numpy as np
import pytest

from raylign.compare.references import against_references, read_samples
from raylign.compare.win_rate import length_controlled_win_rate, win_rate, wins
from raylign.errors import UserError


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def judged(seed: int, advantage: float, per_word: float, longer: float, num: int = 400):
    """Scores, references and lengths of two policies, for a judge who gives `per_word` log odds to every word more."""
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(10 + longer, 3, num), rng.normal(10, 3, num)
    return advantage + per_word * (ours - theirs) + rng.logistic(size=num), np.zeros(num), ours, theirs


def test_a_tie_is_half_a_win():
    assert wins([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 5.0]).tolist() == [1.0, 0.5, 1.0, 0.0]
    assert win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 1.0, 5.0]).rate == 0.625


def test_scores_that_went_through_fp32_tie_with_themselves():
    scores = 5 * (np.arange(1, 100) / 7 - 0.02)
    through = scores.astype(np.float32).astype(float)
    assert (through != scores).any()
    assert (wins(through, scores) == 0.5).all()
    assert win_rate(scores + 0.1, scores).rate == 1.0


def test_the_interval_is_that_of_a_proportion():
    scores = np.repeat([1.0, 0.0], [120, 80])
    found = win_rate(scores, np.full(200, 0.5))
    half = 1.96 * np.sqrt(0.6 * 0.4 / 200)
    assert found.rate == 0.6
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.008)
    assert found == win_rate(scores, np.full(200, 0.5))
    wider = win_rate(scores, np.full(200, 0.5), confidence=0.99)
    assert wider.low < found.low < found.high < wider.high
    assert str(found).startswith("60.0 % [5")


def test_equal_policies_win_half():
    """Negative control, and the intervals hold the truth as often as they say."""
    held = held_at_equal_length = 0
    for seed in range(100):
        scores, references, ours, theirs = judged(seed, 0.0, 0.5, 0.0, num=200)
        plain = win_rate(scores, references, num_resamples=500)
        equal = length_controlled_win_rate(scores, references, ours, theirs, num_resamples=200)
        held += plain.low <= 0.5 <= plain.high
        held_at_equal_length += equal.low <= 0.5 <= equal.high
    assert 88 <= held <= 100
    assert 86 <= held_at_equal_length <= 100


def test_length_alone_wins_and_does_not_win_at_equal_length():
    wins_plainly = wins_at_equal_length = 0
    for seed in range(40):
        scores, references, ours, theirs = judged(seed, advantage=0.0, per_word=0.5, longer=3.0)
        wins_plainly += win_rate(scores, references, num_resamples=300).low > 0.6
        equal = length_controlled_win_rate(scores, references, ours, theirs, num_resamples=200)
        wins_at_equal_length += equal.low > 0.5
        assert not equal.extrapolated
    assert wins_plainly == 40
    assert wins_at_equal_length <= 4  # 1 in 40 is expected of intervals of 95 %


def test_a_better_policy_wins_at_equal_length_though_its_shortness_loses():
    scores, references, ours, theirs = judged(2, advantage=1.0, per_word=0.5, longer=-4.0)
    assert win_rate(scores, references).high < 0.5
    equal = length_controlled_win_rate(scores, references, ours, theirs)
    assert equal.low < sigmoid(1.0) < equal.high
    assert equal.low > 0.5


def test_without_differences_of_length_it_is_the_win_rate():
    # 3 of 4 wins, and half a win and half a loss more: 3.5 of 5.
    found = length_controlled_win_rate([1.0, 1.0, 1.0, 0.0], [0.5] * 4, [7.0] * 4, [7.0] * 4)
    assert found.rate == pytest.approx(0.7)
    assert not found.extrapolated


def test_the_intercept_by_hand():
    """Four comparisons, each won or lost at d = +2 and at d = -2, so that length says nothing: b = 0. With 3 wins of each
    4 the intercept is log(6.5 / 2.5)."""
    lengths = [9.0] * 4 + [5.0] * 4
    found = length_controlled_win_rate([1.0, 1.0, 1.0, 0.0] * 2, [0.5] * 8, lengths, [7.0] * 8)
    assert found.rate == pytest.approx(6.5 / 9)


def test_the_fit_is_the_maximum_of_the_penalised_likelihood():
    scores, references, ours, theirs = judged(3, 0.4, 0.3, 2.0, num=60)
    found = length_controlled_win_rate(scores, references, ours, theirs, num_resamples=10).rate
    won, d = (scores > 0).astype(float), ours - theirs
    x = d / np.sqrt(np.mean(d**2))

    def likelihood(a, b):
        p = sigmoid(a + b * x)
        prior = 0.5 * np.log(sigmoid(a)) + 0.5 * np.log(sigmoid(-a)) - b**2 / 2
        return (won * np.log(p) + (1 - won) * np.log(1 - p)).sum() + prior

    a = np.log(found / (1 - found))
    grid = np.linspace(-3, 3, 6001)
    b = grid[np.argmax([likelihood(a, value) for value in grid])]
    best = likelihood(a, b)
    assert all(likelihood(a + da, b + db) < best + 1e-6 for da in (-0.01, 0, 0.01) for db in (-0.01, 0, 0.01))


def test_what_length_decides_alone_stays_finite_and_is_marked_where_nothing_is_of_equal_length():
    always = length_controlled_win_rate(np.ones(50), np.zeros(50), np.arange(1.0, 51), np.zeros(50))
    assert always.extrapolated
    assert np.isfinite([always.rate, always.low, always.high]).all()
    length = np.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])
    decided = length_controlled_win_rate((length > 0) * 1.0, np.full(6, 0.5), length, np.zeros(6))
    assert decided.rate == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("scores", "references", "problem"),
    [
        ([], [], "no scores to compare"),
        ([1.0, 2.0], [1.0], "2 scores against 1 reference scores"),
        ([1.0, None], [1.0, 1.0], r"scores\[1\] is nan; leave out"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores, references, problem):
    with pytest.raises(UserError, match=f"^win rate: {problem}"):
        win_rate(scores, references)


def test_settings_that_make_no_interval_are_refused():
    with pytest.raises(UserError, match="confidence 95 is not between"):
        win_rate([1.0], [0.0], confidence=95)
    with pytest.raises(UserError, match="num_resamples 0 gives no interval"):
        win_rate([1.0], [0.0], num_resamples=0)
    with pytest.raises(UserError, match="1 lengths for 2 scores"):
        length_controlled_win_rate([1.0, 2.0], [0.0, 0.0], [3.0], [3.0])


# --- from the files of a run


def num_words(prompts, completions, **columns):
    assert columns.keys() == {"reference", "topic"}
    return [len(completion.split()) for completion in completions]


def sample(completion: str, score: float | None, reference: str = "two words"):
    columns = {"reference": reference, "topic": "x"}
    return {"prompt": "say", "completion": completion, "score": score, "length": 3, "columns": columns}


def test_completions_are_compared_with_the_references_of_their_prompts(tmp_path):
    kept = [sample("a b c", 3.0), sample("a b", 2.0), sample("a", 1.0), sample("d e f", 3.0), sample("lost", None)]
    folder = tmp_path / "evaluations"
    folder.mkdir()
    (folder / "after_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    found = against_references(read_samples(tmp_path), num_words)
    assert found.rate.rate == pytest.approx(2.5 / 4)
    assert (found.score, found.reference_score) == (2.25, 2.0)
    assert (found.length, found.reference_length) == (2.25, 2.0)
    assert (found.rate.num, found.num_left_out) == (4, 1)
    assert found.at_equal_length.num == 4


def test_a_run_without_references_or_samples_says_so(tmp_path):
    with pytest.raises(UserError, match=r"after_samples\.jsonl: is not there"):
        read_samples(tmp_path)
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "after_samples.jsonl").write_text("")
    with pytest.raises(UserError, match=r"set evaluation\.keep_samples"):
        read_samples(tmp_path)
    with pytest.raises(UserError, match="no 'answer' to compare with; the columns kept are reference, topic"):
        against_references([sample("a", 1.0)], num_words, column="answer")
    with pytest.raises(UserError, match="no held-out completion has a score"):
        against_references([sample("a", None)], num_words)
