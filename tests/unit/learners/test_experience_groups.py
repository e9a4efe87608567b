"""Assembly of a step without a critic: GRPO, RLOO and REINFORCE++ over two shards, every number worked by hand."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from raylign.config import GRPOConfig, PolicyGradientAlgorithm, ReinforcePPConfig, RLOOConfig
from raylign.learners.experience import Samples, assemble
from raylign.types import Experience, FloatArray, LongArray, RolloutBatch, Scores

KL_COEF = 0.1
NAN = float("nan")
OUT = [0.0, 0.0, 0.0, 0.0]


def floats(*rows: list[float]) -> FloatArray:
    return np.array(rows, dtype=np.float32)


def rollout(tokens: list[list[int]], masks: list[str], logprobs: FloatArray, rows: list[int], cut: list[int]):
    """Masks are written as they stand: `..xx` is a prompt of two tokens and a completion of two."""
    mask = np.array([[c == "x" for c in row] for row in masks])
    return RolloutBatch(
        tokens=np.array(tokens, dtype=np.int32),
        prompt_lengths=np.argmax(mask, axis=1).astype(np.int32),
        completion_mask=mask,
        logprobs=logprobs,
        finished=np.array([i not in cut for i in range(len(rows))]),
        prompt_rows=np.array(rows),
        policy_version=np.full(len(rows), 3),
    )


# Prompt 4 ([5]) has rows 0, 2 and 3, prompt 9 ([6, 9]) has rows 1, 4 and 5: both lie in both shards. Row 2 was cut by
# length, row 4 could not be scored.
ROLLOUTS = [
    rollout(
        [[5, 7, 1, 0], [6, 9, 3, 1]],
        [".xx.", "..xx"],
        floats([0, -1.1, -2, 0], [0, 0, -1, -1.4]),
        rows=[4, 9],
        cut=[],
    ),
    rollout(
        [[5, 8, 0], [5, 2, 1], [6, 9, 4], [6, 9, 1]],
        [".x.", ".xx", "..x", "..x"],
        floats([0, -2, 0], [0, -0.5, -0.5], [0, 0, -3], [0, 0, -2]),
        rows=[4, 4, 9, 9],
        cut=[0],
    ),
]
SCORES = [
    Scores(floats([1, 0])[0], np.array([True, True])),
    Scores(floats([3, 2, NAN, 4])[0], np.array([True, True, False, True])),
]
# Learner less reference: row 0 [0.5, -1], row 1 [0.2, 0], row 2 [0], row 3 [0.5, 0], row 4 [-2], row 5 [-1].
OLD = [floats([0, -1, -2, 0], [0, 0, -1, -1]), floats([0, -1, 0], [0, -0.5, -0.5], [0, 0, -3], [0, 0, -2])]
REF = [floats([0, -1.5, -1, 0], [0, 0, -1.2, -1]), floats([0, -1, 0], [0, -1, -0.5], [0, 0, -1], [0, 0, -1])]


def algorithm_of(name: str, **options: Any) -> PolicyGradientAlgorithm:
    kinds = {"grpo": GRPOConfig, "rloo": RLOOConfig, "reinforce++": ReinforcePPConfig}
    return kinds[name](**{"name": name, **options})


def made(name: str, *, ref: bool = True, max_tokens: int = 8, **options: Any) -> tuple[Experience, dict[str, float]]:
    samples = Samples.join(ROLLOUTS, SCORES, REF if ref else None, None, OLD)
    return assemble(algorithm_of(name, **options), samples, KL_COEF, max_tokens)


def on_rows(a: float, b: float, c: float, d: float, f: float) -> FloatArray:
    """One advantage for every completion token of rows 0, 1, 2, 3 and 5."""
    return floats([0, a, a, 0], [0, 0, b, b], [0, c, 0, 0], [0, d, d, 0], OUT, [0, 0, f, 0])


def importance_of(experience: Experience) -> FloatArray:
    assert experience.importance is not None
    return experience.importance


# ---------------------------------------------------------------- advantages


def test_grpo_by_hand():
    # Prompt 4: scores 1, 3, 2, mean 2, standard deviation 1. Prompt 9: 0 and 4, mean 2, standard deviation 8 ** 0.5.
    one, two = 1 / 1.0001, 2 / (8**0.5 + 1e-4)
    found, _ = made("grpo")
    np.testing.assert_allclose(found.advantages, on_rows(-one, -two, one, 0, two), atol=1e-6)
    dr, _ = made("grpo", scale="none")
    np.testing.assert_allclose(dr.advantages, on_rows(-1, -2, 1, 0, 2), atol=1e-6)


def test_rloo_by_hand():
    # With the KL in the reward prompt 4 gets 1 + 0.05, 3, 2 - 0.05 and prompt 9 gets -0.02, 4 + 0.1; the others of row
    # 0 have the mean (3 + 1.95) / 2, of row 2 1.5, of row 3 2.025; rows 1 and 5 have each other.
    found, _ = made("rloo")
    np.testing.assert_allclose(found.advantages, on_rows(-1.425, -4.12, 1.5, -0.075, 4.12), atol=1e-6)
    assert found.returns is None
    assert found.values is None


def test_reinforce_plus_plus_by_hand():
    # Rewards: row 0 [-0.05, 0.1 + 1], row 1 [-0.02, 0], row 2 [3], row 3 [-0.05, 2], row 5 [4.1]; each token gets half
    # of what the next one gets.
    expected = floats([0, 0.5, 1.1, 0], [0, 0, -0.02, 0], [0, 3, 0, 0], [0, 0.95, 2, 0], OUT, [0, 0, 4.1, 0])
    plain, _ = made("reinforce++", gamma=0.5, whiten_advantages=False)
    np.testing.assert_allclose(plain.advantages, expected, atol=1e-6)
    # Eight tokens with the sum 11.63; the row without a score is no part of their mean.
    found, _ = made("reinforce++", gamma=0.5)
    mask = found.completion_mask
    assert mask.sum() == 8
    centred = expected[mask] - 11.63 / 8
    np.testing.assert_allclose(found.advantages[mask], centred / (centred**2).mean() ** 0.5, atol=1e-5)
    assert not found.advantages[~mask].any()


def test_a_row_without_a_valid_score_is_in_no_group_and_not_learned_from():
    for name in ("grpo", "rloo", "reinforce++"):
        found, metrics = made(name)
        assert not found.completion_mask[4].any()
        assert found.completion_mask[[0, 1, 2, 3, 5]].any(1).all()
        assert np.isfinite(found.advantages).all()
        assert metrics["reward/invalid"] == 1
        assert metrics["tokens/trained"] == 8


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce++"])
def test_shards_and_the_order_of_rows_change_nothing(name):
    whole = Samples.join(ROLLOUTS, SCORES, REF, None, OLD)
    expected, expected_metrics = assemble(algorithm_of(name), whole, KL_COEF, 8)
    order: LongArray = np.array([5, 2, 0, 4, 1, 3])
    rows = [whole.take(order[i : i + 1]) for i in range(6)]
    single = Samples.join(
        [row.batch for row in rows],
        [Scores(row.scores, row.valid) for row in rows],
        [row.ref_logprobs for row in rows if row.ref_logprobs is not None],
        None,
        [row.old_logprobs for row in rows if row.old_logprobs is not None],
    )
    found, metrics = assemble(algorithm_of(name), single, KL_COEF, 8)
    for field in fields(Experience):
        before, after = getattr(expected, field.name), getattr(found, field.name)
        if isinstance(before, np.ndarray):
            np.testing.assert_allclose(after, before[order], atol=1e-6, err_msg=field.name)
    assert metrics == pytest.approx(expected_metrics, abs=1e-6)


# ---------------------------------------------------------------- KL, importance


def test_kl_in_the_reward_leaves_none_for_the_loss():
    found, metrics = made("grpo", scale="none", kl={"where": "reward", "estimator": "k1"})
    np.testing.assert_allclose(found.advantages, on_rows(-0.95, -2.06, 1, -0.05, 2.06), atol=1e-6)
    assert found.ref_logprobs is None
    assert found.kl_coef == 0
    assert metrics["kl/coef"] == KL_COEF


def test_kl_in_the_loss_leaves_none_for_the_reward():
    found, metrics = made("grpo", scale="none", kl={"where": "loss", "estimator": "k3"})
    np.testing.assert_allclose(found.advantages, on_rows(-1, -2, 1, 0, 2), atol=1e-6)
    expected = [[0, -1.5, -1, 0], [0, 0, -1.2, -1], [0, -1, 0, 0], [0, -1, -0.5, 0], [0, 0, -1, 0], [0, 0, -1, 0]]
    assert found.ref_logprobs is not None
    np.testing.assert_array_equal(found.ref_logprobs, floats(*expected))
    assert found.kl_coef == KL_COEF
    assert metrics["kl/coef"] == KL_COEF


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce++"])
def test_without_a_reference_there_is_no_kl(name):
    found, metrics = made(name, ref=False, whiten_advantages=False)
    assert not {"kl/k1", "kl/k3"} & metrics.keys()
    assert {"kl/k1", "kl/k3"} <= made(name)[1].keys()
    assert found.ref_logprobs is None
    assert found.kl_coef == 0
    one, two = 1 / 1.0001, 2 / (8**0.5 + 1e-4)
    by_hand = {
        "grpo": on_rows(-one, -two, one, 0, two),
        "rloo": on_rows(-1.5, -4, 1.5, 0, 4),
        "reinforce++": on_rows(1, 0, 3, 2, 4),
    }
    np.testing.assert_allclose(found.advantages, by_hand[name], atol=1e-6)


def test_importance_weights_compare_the_learner_with_the_engine():
    assert made("grpo")[0].importance is None
    # Learner less engine: row 0 [0.1, 0], row 1 [0, 0.4], row 2 [1], of which exp is over the cap.
    found, _ = made("grpo", importance={"mode": "truncate", "cap": 2.0})
    up, more = np.exp(0.1), np.exp(0.4)
    expected = floats([0, up, 1, 0], [0, 0, 1, more], [0, 2, 0, 0], [0, 1, 1, 0], OUT, [0, 0, 1, 0])
    np.testing.assert_allclose(importance_of(found), expected, atol=1e-6)
    found, _ = made("grpo", importance={"mode": "mask", "cap": 2.0, "level": "sequence"})
    expected = floats([0, up, up, 0], [0, 0, more, more], [0, 0, 0, 0], [0, 1, 1, 0], OUT, [0, 0, 1, 0])
    np.testing.assert_allclose(importance_of(found), expected, atol=1e-6)


# ---------------------------------------------------------------- penalties


def test_penalties_are_taken_from_the_score_and_not_from_the_metric():
    penalties: dict[str, Any] = {
        "missing_eos_penalty": 0.5,
        "length_penalty": 0.1,
        "overlong": {"buffer": 2, "penalty": 0.5},
    }
    found, metrics = made("rloo", ref=False, max_tokens=3, **penalties)
    # One token: -0.1. Two: -0.2, and half of the way into the buffer -0.25. Row 2 was cut: -0.5. So prompt 4 gets
    # 0.55, 2.4, 1.55 and prompt 9 gets -0.45, 3.9.
    np.testing.assert_allclose(found.advantages, on_rows(-1.425, -4.35, 1.35, 0.075, 4.35), atol=1e-6)
    assert metrics["reward/mean"] == 2
    without, _ = made("rloo", ref=False, max_tokens=3)
    np.testing.assert_allclose(without.advantages, on_rows(-1.5, -4, 1.5, 0, 4), atol=1e-6)


# ---------------------------------------------------------------- dynamic sampling


def sampled(prompts: list[int], scores: list[float], num_shards: int = 2) -> Samples:
    """One completion token a row; the number of the row is the token. A score of nan is not valid."""
    shards = []
    for rows in np.array_split(np.arange(len(prompts)), num_shards):
        tokens = [[5, int(row)] for row in rows]
        engine = np.tile(floats([0, -1]), (len(rows), 1))
        shards.append(rollout(tokens, [".x"] * len(rows), engine, [prompts[row] for row in rows], cut=[]))
    values = np.array_split(np.array(scores, dtype=np.float32), num_shards)
    return Samples.join(shards, [Scores(v, np.isfinite(v)) for v in values])


# In the order in which they were sampled: prompt 40 can be told apart, 10 cannot, 30, 20 and 50 can. Their rows are not
# beside each other and lie in both shards.
PROMPTS = [40, 10, 30, 40, 10, 20, 30, 20, 50, 50]
VALUES = [1.0, 2.0, 0.0, 0.0, 2.0, 5.0, 1.0, 7.0, 1.0, 0.0]


def dynamic(samples: Samples, **options: Any) -> tuple[Experience, dict[str, float]]:
    config = GRPOConfig(**{"name": "grpo", "samples_per_prompt": 2, "scale": "none", **options})
    return assemble(config, samples, KL_COEF, 8)


def test_the_first_informative_groups_are_kept_in_the_order_they_were_sampled():
    found, metrics = dynamic(sampled(PROMPTS, VALUES), dynamic_sampling=1, prompts_per_step=2)
    assert found.tokens[:, 1].tolist() == [0, 2, 3, 6]  # prompts 40 and 30, not 20 and 30, which have lower numbers
    assert found.advantages[:, 1].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert metrics["rollout/groups"] == 4  # how many there were, so that the loop knows whether it may stop
    assert metrics["tokens/trained"] == 4
    assert metrics["reward/mean"] == pytest.approx(np.mean(VALUES))  # of all samples
    fewer, metrics = dynamic(sampled(PROMPTS, VALUES), dynamic_sampling=1, prompts_per_step=9)
    assert fewer.tokens[:, 1].tolist() == [0, 2, 3, 5, 6, 7, 8, 9]
    assert metrics["rollout/groups"] == 4


def test_without_dynamic_sampling_every_group_stays():
    found, metrics = dynamic(sampled(PROMPTS, VALUES), dynamic_sampling=0, prompts_per_step=2)
    assert found.tokens[:, 1].tolist() == [*range(10)]
    assert found.advantages[[1, 4], 1].tolist() == [0, 0]
    assert found.completion_mask[[1, 4], 1].all()
    assert "rollout/groups" not in metrics


def test_a_row_that_is_not_valid_makes_no_group_informative():
    samples = sampled([1, 1, 1, 2, 2, 3, 3, 3], [4.0, 4.0, NAN, 0.0, NAN, 1.0, NAN, 2.0])
    found, metrics = dynamic(samples, dynamic_sampling=1, prompts_per_step=4)
    assert metrics["rollout/groups"] == 1
    assert found.tokens[:, 1].tolist() == [5, 6, 7]
    assert found.completion_mask[:, 1].tolist() == [True, False, True]
    assert found.advantages[:, 1].tolist() == [-0.5, 0, 0.5]


def test_no_informative_group_leaves_nothing_to_learn_from():
    found, metrics = dynamic(sampled([1, 1, 2, 2], [3.0, 3.0, 0.0, 0.0]), dynamic_sampling=1, prompts_per_step=2)
    assert len(found) == 0
    assert metrics["rollout/groups"] == 0
    assert metrics["tokens/trained"] == 0
    assert metrics["reward/mean"] == 1.5
