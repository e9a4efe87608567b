"""Assembly of a step: two shards of different widths, every number worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raylign.config import KLConfig, PPOConfig
from raylign.learners.experience import Samples, assemble
from raylign.types import Experience, FloatArray, RolloutBatch, Scores

KL_COEF = 0.1


def floats(*rows: list[float]) -> FloatArray:
    return np.array(rows, dtype=np.float32)


def algorithm(**options) -> PPOConfig:
    plain = {"name": "ppo", "gae_lambda": 0.5, "whiten_advantages": False, "missing_eos_penalty": 0.5}
    return PPOConfig(**{**plain, **options})


# Row 0: the prompt [5, 9] with the completion [7, 1]. Row 1: [6] with [8], cut by length. Row 2: [6] with [2, 3], a
# row that could not be scored.
ROLLOUTS = [
    RolloutBatch(
        tokens=np.array([[5, 9, 7, 1]], dtype=np.int32),
        prompt_lengths=np.array([2], dtype=np.int32),
        completion_mask=np.array([[False, False, True, True]]),
        logprobs=floats([0, 0, -1.1, -2]),
        finished=np.array([True]),
        prompt_rows=np.array([0]),
        policy_version=np.array([3]),
    ),
    RolloutBatch(
        tokens=np.array([[6, 8, 0], [6, 2, 3]], dtype=np.int32),
        prompt_lengths=np.array([1, 1], dtype=np.int32),
        completion_mask=np.array([[False, True, False], [False, True, True]]),
        logprobs=floats([0, -0.8, 0], [0, -1, -0.6]),
        finished=np.array([False, True]),
        prompt_rows=np.array([1, 1]),
        policy_version=np.array([3, 3]),
    ),
]
SCORES = [
    Scores(values=floats([1])[0], valid=np.array([True])),
    Scores(values=floats([2, float("nan")])[0], valid=np.array([True, False])),
]
OLD = [floats([0, 0, -1, -2]), floats([0, -1, 0], [0, -1, -1])]
REF = [floats([0, 0, -1.5, -1]), floats([0, -1, 0], [0, -1.2, -1])]
VALUES = [floats([0, 0, 0.5, 0.25]), floats([0, 1, 0], [0, 4, 4])]


def returns_of(experience: Experience) -> FloatArray:
    assert experience.returns is not None
    return experience.returns


def made(config: PPOConfig, scores=SCORES, rollouts=ROLLOUTS) -> tuple[Experience, dict[str, float]]:
    old = OLD if config.old_logprobs == "learner" else None
    return assemble(config, Samples.join(rollouts, scores, REF, VALUES, old), KL_COEF, max_tokens=8)


def test_experience_by_hand():
    found, _ = made(algorithm())
    # k1 is [0.5, -1] in row 0: rewards -0.05 and 0.1 + 1. Row 1: k1 is 0, the score 2 less the penalty 0.5.
    # Row 0, from the right: 1.1 - 0.25 = 0.85; -0.05 + 0.25 - 0.5 + 0.5 * 0.85 = 0.125. Row 1: 1.5 - 1 = 0.5.
    np.testing.assert_allclose(found.advantages, floats([0, 0, 0.125, 0.85], [0, 0.5, 0, 0], [0] * 4), atol=1e-6)
    np.testing.assert_allclose(returns_of(found), floats([0, 0, 0.625, 1.1], [0, 1.5, 0, 0], [0] * 4), atol=1e-6)
    assert found.tokens.tolist() == [[5, 9, 7, 1], [6, 8, 0, 0], [6, 2, 3, 0]]
    assert found.lengths.tolist() == [4, 2, 3]
    np.testing.assert_array_equal(found.old_logprobs, floats([0, 0, -1, -2], [0, -1, 0, 0], [0, -1, -1, 0]))
    np.testing.assert_array_equal(found.values, floats([0, 0, 0.5, 0.25], [0, 1, 0, 0], [0, 4, 4, 0]))


def test_metrics_by_hand():
    _, metrics = made(algorithm())
    expected = {
        "reward/mean": 1.5,  # raw and valid scores: 1 and 2, without the penalty
        "reward/std": 0.5,
        "reward/invalid": 1,
        "kl/coef": KL_COEF,
        "kl/k1": (0.5 - 1 + 0.2) / 3,  # per sequence, over every sampled row
        "kl/k3": (0.10653066 + 0.71828183 + 0.01873075) / 3,  # exp(-d) - 1 + d of 0.5, -1, 0.2
        "completion/length": 5 / 3,
        "completion/finished": 2 / 3,
        "tokens/trained": 3,
        # |learner - engine| of the five sampled tokens, sorted: 0, 0, 0.1, 0.2, 0.4.
        "logprob_gap/p50": 0.1,
        "logprob_gap/p99": 0.2 + 0.96 * 0.2,
        "logprob_gap/max": 0.4,
    }
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_the_gap_is_between_engine_and_learner_and_absent_where_one_of_them_is_not_asked():
    _, metrics = made(algorithm(old_logprobs="engine"))
    assert not [name for name in metrics if name.startswith("logprob_gap/")]


def test_a_row_without_a_valid_score_is_out_of_the_mask_and_not_a_zero():
    found, _ = made(algorithm(whiten_advantages=True))
    assert found.completion_mask.tolist() == [[False, False, True, True], [False, True, False, False], [False] * 4]
    assert np.isfinite(found.advantages).all()
    assert np.isfinite(returns_of(found)).all()

    as_zero = [SCORES[0], Scores(values=floats([2, 0])[0], valid=np.array([True, True]))]
    wrong, metrics = made(algorithm(whiten_advantages=True), as_zero)  # negative control
    assert wrong.completion_mask[2].tolist() == [False, True, True, False]
    assert abs(wrong.advantages[0, 3] - found.advantages[0, 3]) > 0.1
    assert metrics["reward/mean"] == pytest.approx(1.0)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -1e30])
def test_the_value_of_an_invalid_score_is_never_read(garbage):
    scores = [SCORES[0], Scores(values=floats([2, garbage])[0], valid=np.array([True, False]))]
    config = algorithm(whiten_advantages=True, whiten_rewards=True)
    (expected, expected_metrics), (found, metrics) = made(config), made(config, scores)
    np.testing.assert_array_equal(found.advantages, expected.advantages)
    np.testing.assert_array_equal(returns_of(found), expected.returns)
    assert metrics == expected_metrics


def test_the_penalty_is_for_cut_completions_only():
    without, _ = made(algorithm(missing_eos_penalty=0.0))
    with_penalty, _ = made(algorithm(missing_eos_penalty=0.5))
    np.testing.assert_allclose(
        returns_of(without) - returns_of(with_penalty), floats([0] * 4, [0, 0.5, 0, 0], [0] * 4), atol=1e-6
    )


def test_whitened_advantages_have_mean_zero_and_variance_one_over_all_shards():
    found, _ = made(algorithm(whiten_advantages=True))
    # 0.125, 0.85 and 0.5 have mean 0.491667 and variance 0.087639.
    expected = (np.array([0.125, 0.85, 0.5]) - 0.4916667) / 0.0876389**0.5
    np.testing.assert_allclose(found.advantages[found.completion_mask], expected, atol=1e-5)
    plain, _ = made(algorithm())
    np.testing.assert_array_equal(returns_of(found), returns_of(plain))  # the critic learns the returns as they are


def test_whitened_rewards_keep_their_mean():
    found, _ = made(algorithm(whiten_rewards=True, gae_lambda=0.0))
    # Rewards -0.05, 1.1 and 1.5: mean 0.85, variance 0.431667, standard deviation 0.657013. With lambda 0 the return
    # is the reward and the next value.
    white = 0.85 + (np.array([-0.05, 1.1, 1.5]) - 0.85) / 0.6570134
    np.testing.assert_allclose(returns_of(found)[found.completion_mask], [white[0] + 0.25, *white[1:]], atol=1e-5)


def test_the_estimator_of_the_penalty_is_the_one_asked_for():
    found, _ = made(algorithm(kl=KLConfig(estimator="k2"), gae_lambda=0.0))
    # Half the squares of 0.5 and -1: 0.125 and 0.5.
    np.testing.assert_allclose(returns_of(found)[0, 2:], [-0.0125 + 0.25, -0.05 + 1], atol=1e-6)


def test_how_rows_are_sharded_changes_nothing():
    second, scores = ROLLOUTS[1], SCORES[1]

    def row(i: int) -> RolloutBatch:
        return RolloutBatch(**{name: getattr(second, name)[i : i + 1] for name in second.__dataclass_fields__})

    config = algorithm(whiten_advantages=True)
    expected, expected_metrics = made(config)
    samples = Samples.join(
        [ROLLOUTS[0], row(0), row(1)],
        [SCORES[0], *(Scores(scores.values[i : i + 1], scores.valid[i : i + 1]) for i in (0, 1))],
        [REF[0], REF[1][:1], REF[1][1:]],
        [VALUES[0], VALUES[1][:1], VALUES[1][1:]],
        [OLD[0], OLD[1][:1], OLD[1][1:]],
    )
    found, metrics = assemble(config, samples, KL_COEF, max_tokens=8)
    for name in expected.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert metrics == expected_metrics


def test_without_any_valid_score_nothing_is_learned_and_no_mean_is_invented():
    invalid = [replace(s, valid=np.zeros_like(s.valid)) for s in SCORES]
    found, metrics = made(algorithm(whiten_advantages=True, whiten_rewards=True), invalid)
    assert not found.completion_mask.any()
    assert not found.advantages.any()
    assert not returns_of(found).any()
    assert np.isnan(metrics["reward/mean"])
    assert metrics["reward/invalid"] == 3
    assert metrics["tokens/trained"] == 0
