"""Online DPO: which samples make a pair, which of them is preferred, and a step as the written equation has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from raylign.config import OnlineDPOConfig, SamplingConfig
from raylign.learners.online_dpo import OnlineDPOLearner
from raylign.types import FloatArray, PairExperience, RolloutBatch, Scores
from tests.unit.tiny import (
    GradientTrap,
    assert_same,
    differs,
    model_config,
    plain,
    plain_logprobs,
    rows_of,
    save_tiny,
    spec_of,
    weights_of,
)

BETA, SMOOTHING = 0.3, 0.1
NAN = float("nan")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(
        tmp_path_factory.mktemp("online_dpo") / "policy", Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True
    )


def learner_of(folder: Path, budget: int = 4096, seed: int = 0, rate: float = 1e-3, **options: Any) -> OnlineDPOLearner:
    algorithm = OnlineDPOConfig(**{"name": "online_dpo", "beta": BETA, **options})
    sampling = SamplingConfig(temperature=1.0, max_tokens=4)
    return OnlineDPOLearner(model_config(folder), spec_of(budget, seed=seed, learning_rate=rate), algorithm, sampling)


# ---------------------------------------------------------------- assembly


def shard(completions: list[list[int]], cut: tuple[int, ...] = (), version: int = 3) -> RolloutBatch:
    """Completions of the prompt [5, 9]; `cut` are rows that were stopped by length."""
    width = 2 + max(map(len, completions))
    tokens, mask = np.zeros((len(completions), width), np.int32), np.zeros((len(completions), width), np.bool_)
    for i, completion in enumerate(completions):
        tokens[i, : 2 + len(completion)] = [5, 9, *completion]
        mask[i, 2 : 2 + len(completion)] = True
    return RolloutBatch(
        tokens=tokens,
        prompt_lengths=np.full(len(tokens), 2, dtype=np.int32),
        completion_mask=mask,
        logprobs=np.where(mask, -1, 0).astype(np.float32),
        finished=np.array([i not in cut for i in range(len(tokens))]),
        prompt_rows=np.arange(len(tokens)) // 2,
        policy_version=np.full(len(tokens), version),
    )


def scored(*values: float) -> Scores:
    array = np.array(values, dtype=np.float32)
    return Scores(array, np.isfinite(array))


def reference(rollout: RolloutBatch) -> FloatArray:
    """-0.1 times the token: rows are told apart by it."""
    return np.where(rollout.completion_mask, -0.1 * rollout.tokens, 0).astype(np.float32)


def parts_of(rollouts: list[RolloutBatch], scores: list[Scores]) -> dict[str, Any]:
    return {"rollouts": rollouts, "scores": scores, "ref_logprobs": [reference(r) for r in rollouts]}


# Pairs (rows 0 and 1, ...): the second is better; both the same; no score for one; a tie; the first is better.
ROLLOUTS = [
    shard([[7, 1], [8], [3, 1], [3, 1]]),
    shard([[4, 6, 1], [2, 1], [8, 1], [7, 1], [2, 2], [4, 1]], cut=(4,)),
]
SCORES = [scored(1, 3, 2, 9), scored(NAN, 5, 2, 2, 4, 1)]


def made(folder: Path, rollouts=ROLLOUTS, scores=SCORES, **options: Any) -> tuple[PairExperience, dict[str, float]]:
    return learner_of(folder, **options).assemble(0.0, parts_of(rollouts, scores))


def completions(experience: PairExperience) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(experience.tokens, experience.completion_mask, strict=True)]


def test_soft_labels_by_hand(folder):
    found, metrics = made(folder, label="soft")
    assert completions(found) == [[8], [7, 1], [8, 1], [7, 1], [2, 2], [4, 1]]  # the preferred one of each pair first
    # sigmoid of 2, of 0 and of 3.
    np.testing.assert_allclose(found.probability, [0.8807971, 0.5, 0.9525741], atol=1e-6)
    np.testing.assert_allclose(found.ref_logprobs, [-0.8, -0.8, -0.9, -0.8, -0.4, -0.5], atol=1e-6)
    assert found.lengths.tolist() == [3, 4, 4, 4, 4, 4]
    assert found.tokens.shape == found.completion_mask.shape == (6, 5)
    assert len(found) == metrics["online_dpo/pairs"] == 3
    assert metrics["tokens/trained"] == 11
    # Over all samples, also those in no pair.
    assert metrics["reward/mean"] == pytest.approx(29 / 9)
    assert metrics["reward/invalid"] == 1
    assert metrics["completion/finished"] == 0.9


def test_the_best_is_a_hard_label_and_a_tie_is_no_pair(folder):
    found, metrics = made(folder, label="best")
    assert completions(found) == [[8], [7, 1], [2, 2], [4, 1]]
    assert found.probability.tolist() == [1, 1]
    assert metrics["online_dpo/pairs"] == 2


def test_penalties_decide_who_is_preferred_and_leave_the_metric_alone(folder):
    bare, metrics = made(folder, label="best")
    found, other = made(folder, label="best", missing_eos_penalty=3.5)  # row 4 of the second shard was cut: 0.5 < 1
    assert completions(found) == [*completions(bare)[:2], [4, 1], [2, 2]]
    assert other["reward/mean"] == metrics["reward/mean"]
    found, _ = made(folder, label="soft", length_penalty=0.5)  # 3 - 0.5 over 1 - 1
    assert found.probability[0] == pytest.approx(1 / (1 + np.exp(-2.5)), abs=1e-6)
    found, _ = made(folder, label="soft", overlong={"buffer": 4, "penalty": 4.0})  # 3 - 1 over 1 - 2
    assert found.probability[0] == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-6)


def test_completions_that_differ_in_length_only_are_two(folder):
    """The padding is the token 0, which a completion may hold as well."""
    found, _ = made(folder, [shard([[8], [8, 0]])], [scored(1, 2)])
    assert completions(found) == [[8, 0], [8]]


def test_how_pairs_are_sharded_changes_nothing(folder):
    expected, metrics = made(folder)
    whole = [[7, 1], [8], [3, 1], [3, 1], [4, 6, 1], [2, 1], [8, 1], [7, 1], [2, 2], [4, 1]]
    found, other = made(folder, [shard(whole, cut=(8,))], [scored(*(v for s in SCORES for v in s.values))])
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)
    assert other == metrics


def test_four_samples_of_a_prompt_are_two_pairs(folder):
    found, metrics = made(folder, [shard([[2, 1], [3, 1], [4, 1], [6, 1]])], [scored(2, 1, 0, 3)], samples_per_prompt=4)
    assert completions(found) == [[2, 1], [3, 1], [6, 1], [4, 1]]
    assert metrics["online_dpo/pairs"] == 2


def test_without_any_pair_no_step_is_taken(folder):
    learner = learner_of(folder)
    before = weights_of(learner)
    found, metrics = learner.assemble(0.0, parts_of([shard([[3, 1], [3, 1], [4], [7]])], [scored(1, 2, NAN, 0)]))
    assert len(found) == metrics["online_dpo/pairs"] == metrics["tokens/trained"] == 0
    assert learner.update(found) == {}
    assert not differs(before, weights_of(learner))


NUM_PAIRS = 2000


def labels(folder: Path, gap: float, seed: int = 0, version: int = 3) -> np.ndarray:
    """Whether the first of each of many like pairs, by `gap` the better one, was preferred."""
    batch = shard([[7], [8]] * NUM_PAIRS, version=version)
    found, _ = made(folder, [batch], [scored(*[gap, 0.0] * NUM_PAIRS)], seed=seed, label="bradley_terry")
    assert found.probability.tolist() == [1] * NUM_PAIRS  # a draw is a hard label
    assert np.sort(found.tokens[:, 2].reshape(-1, 2)).tolist() == [[7, 8]] * NUM_PAIRS
    return found.tokens[::2, 2] == 7


def test_a_drawn_label_errs_as_often_as_the_scores_say(folder):
    for gap in (1.0, 0.0, -2.0):  # a tie is a coin
        share, expected = labels(folder, gap).mean(), 1 / (1 + np.exp(-gap))
        assert abs(share - expected) < 4 * (expected * (1 - expected) / NUM_PAIRS) ** 0.5
    assert labels(folder, 1000.0).all()
    assert not labels(folder, -1000.0).any()


def test_the_noise_of_labels_follows_from_seed_and_version(folder):
    first = labels(folder, 0.0)
    torch.manual_seed(99)
    np.random.default_rng(99).random(10)
    np.testing.assert_array_equal(labels(folder, 0.0), first)
    for other in (labels(folder, 0.0, seed=1), labels(folder, 0.0, version=4)):
        assert 0.4 < (other == first).mean() < 0.6


# ---------------------------------------------------------------- updates

CASES: dict[str, tuple[dict[str, Any], Callable[[Tensor, float], Tensor]]] = {
    # The equation of a pair: d is the difference of the log ratios, p the probability of the label.
    "soft": ({"label": "soft"}, lambda d, p: -p * logsigmoid(BETA * d) - (1 - p) * logsigmoid(-BETA * d)),
    "best": ({"label": "best"}, lambda d, p: -logsigmoid(BETA * d)),
    "drawn, cdpo": (
        {"label": "bradley_terry", "label_smoothing": SMOOTHING},
        lambda d, p: -(1 - SMOOTHING) * logsigmoid(BETA * d) - SMOOTHING * logsigmoid(-BETA * d),
    ),
    "robust": (
        {"label": "best", "loss": "robust", "label_smoothing": SMOOTHING},
        lambda d, p: (
            (-(1 - SMOOTHING) * logsigmoid(BETA * d) + SMOOTHING * logsigmoid(-BETA * d)) / (1 - 2 * SMOOTHING)
        ),
    ),
    "ipo": ({"label": "best", "loss": "ipo"}, lambda d, p: (d - 1 / (2 * BETA)) ** 2),
    "hinge": ({"label": "best", "loss": "hinge"}, lambda d, p: torch.relu(1 - BETA * d)),
}


def pair_experience(num_pairs: int = 6, seed: int = 0, width: int | None = None, soft: bool = True) -> PairExperience:
    tokens, masks = rows_of(2 * num_pairs, seed)
    rng = np.random.default_rng(seed + 1)
    lengths = np.array([len(row) for row in tokens], dtype=np.int64)
    shape = (2 * num_pairs, width or int(lengths.max()))
    padded, mask = np.full(shape, 33, dtype=np.int32), np.zeros(shape, dtype=np.bool_)
    for i, row in enumerate(tokens):
        padded[i, : len(row)], mask[i, : len(row)] = row, masks[i]
    ref = (-4.5 * mask.sum(1) + rng.normal(0, 3, 2 * num_pairs)).astype(np.float32)
    probability = rng.uniform(0.5, 1, num_pairs) if soft else np.ones(num_pairs)
    return PairExperience(padded, lengths, mask, ref, probability.astype(np.float32))


def picked(data: PairExperience, pairs: Any) -> PairExperience:
    rows = np.stack([2 * pairs, 2 * pairs + 1], axis=1).reshape(-1)
    arrays = {name: array[rows] for name, array in vars(data).items() if name != "probability"}
    return replace(data, **arrays, probability=data.probability[pairs])


def step(folder: Path, case: str, data: PairExperience, budget: int = 4096):
    learner = learner_of(folder, budget, **CASES[case][0])
    trap = GradientTrap(learner)
    return learner.update(data), trap.steps[0]


def by_hand(folder: Path, case: str, data: PairExperience) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, mean margin and gradient, one row at a time."""
    model, equation = plain(AutoModelForCausalLM, folder), CASES[case][1]
    log_ratios = []
    for i in range(2 * len(data)):
        logprobs = plain_logprobs(model, data.tokens[i, : data.lengths[i]])
        mask = torch.from_numpy(data.completion_mask[i, : data.lengths[i]])
        log_ratios.append(logprobs[mask].sum() - float(data.ref_logprobs[i]))
    differences = [first - second for first, second in zip(log_ratios[::2], log_ratios[1::2], strict=True)]
    losses = [equation(d, float(p)) for d, p in zip(differences, data.probability, strict=True)]
    loss = torch.stack(losses).mean()
    loss.backward()
    signs = 2 * data.probability - 1  # of a soft label the margin is the expectation over both orders
    margin = float(np.mean([BETA * d.item() * s for d, s in zip(differences, signs, strict=True)]))
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return loss.item(), margin, gradients


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_written_equation(folder, case):
    data = pair_experience(seed=2, soft=case == "soft")
    loss, margin, expected = by_hand(folder, case, data)
    metrics, found = step(folder, case, data)
    norm = torch.stack([g.square().sum() for g in expected.values()]).sum().sqrt().item()
    assert norm > 0.01
    assert metrics["policy/loss"] == pytest.approx(loss, rel=2e-6, abs=2e-6)
    assert metrics["dpo/margin"] == pytest.approx(margin, rel=1e-5, abs=1e-5)
    assert metrics["policy/optimizer/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert_same(found, expected, 2e-5 * norm)


@pytest.mark.parametrize("case", CASES)
def test_order_micro_batches_and_padding_change_nothing(folder, case):
    data, wide = (pair_experience(8, seed=3, width=width, soft=case == "soft") for width in (None, 40))
    metrics, expected = step(folder, case, data)
    tolerance = 1e-6 * max(1.0, metrics["policy/optimizer/grad_norm"])
    for budget in (1, 40, 4096):  # padded tokens: one pair at a time, a few, all
        other = picked((data, wide)[budget == 40], np.random.default_rng(budget).permutation(8))
        other_metrics, found = step(folder, case, other, budget)
        assert_same(found, expected, tolerance)
        assert other_metrics.keys() == metrics.keys()
        for name, value in metrics.items():
            assert other_metrics[name] == pytest.approx(value, rel=2e-6, abs=2e-6), name


def test_the_other_order_is_another_step(folder):
    """Negative control: the first row of a pair is the one that is pushed up."""
    data = pair_experience(seed=2, soft=False)
    rows = np.arange(12).reshape(-1, 2)[:, ::-1].reshape(-1)
    arrays = {name: array[rows] for name, array in vars(data).items() if name != "probability"}
    (metrics, expected), (other, found) = (step(folder, "best", x) for x in (data, replace(data, **arrays)))
    assert other["dpo/margin"] == pytest.approx(-metrics["dpo/margin"], abs=1e-5)
    assert max((found[name] - expected[name]).abs().max().item() for name in found) > 1e-2


def test_epochs_and_minibatches_are_over_pairs(folder):
    data = pair_experience(6, seed=4)
    learner = learner_of(folder, epochs=2, minibatches=3, rate=1e-12)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(learner.spec.seed)).numpy()
    trap = GradientTrap(learner)
    learner.update(data)
    assert learner.num_steps == len(trap.steps) == 6
    for found, pairs in zip(trap.steps, np.array_split(order, 3), strict=False):
        metrics, expected = step(folder, "soft", picked(data, pairs))
        assert_same(found, expected, 2e-6 * max(1.0, metrics["policy/optimizer/grad_norm"]))
