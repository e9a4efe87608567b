"""The policy under the clipped objective: a step equals the written equation, token by token, for every option."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from raylign.config import GRPOConfig, SamplingConfig
from raylign.learners.policy_gradient import PolicyGradientLearner
from raylign.types import Experience
from tests.unit.tiny import (
    GradientTrap,
    assert_same,
    differs,
    experience,
    model_config,
    plain,
    save_tiny,
    spec_of,
    weights_of,
)

TEMPERATURE = 0.7
MAX_TOKENS = 12  # the longest completion that could be sampled
KL_COEF = 0.3

Step = tuple[dict[str, float], dict[str, Tensor]]  # metrics and gradients of one optimizer step

pytestmark = pytest.mark.usefixtures("one_thread")

KL = {"where": "loss", "estimator": "k3"}
EVERYTHING = {
    "clip_range": 0.1,
    "clip_range_high": 0.4,
    "dual_clip": 1.3,
    "entropy_coef": 0.2,
    "kl": {"where": "loss", "estimator": "k2"},
    "importance": {},
}
CASES: dict[str, dict[str, Any]] = {
    "token_mean": {},
    "sequence_mean": {"aggregate": "sequence_mean"},
    "max_tokens": {"aggregate": "max_tokens"},
    "asymmetric clip": {"clip_range": 0.1, "clip_range_high": 0.6},
    "dual clip": {"dual_clip": 1.3},
    "entropy": {"entropy_coef": 0.2},
    "k2 in the loss": {"kl": {"where": "loss", "estimator": "k2"}},
    "k3 in the loss": {"kl": KL},
    "importance": {"importance": {}},
    "everything": EVERYTHING,
    "everything, sequence_mean": {**EVERYTHING, "aggregate": "sequence_mean"},
    "everything, max_tokens": {**EVERYTHING, "aggregate": "max_tokens"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(
        tmp_path_factory.mktemp("online") / "policy", Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True
    )


def algorithm_of(case: str, **options: Any) -> GRPOConfig:
    plain_options = {"name": "grpo", "kl": {"where": "reward", "estimator": "k1"}}
    return GRPOConfig(**{**plain_options, **CASES[case], **options})


def data_of(case: str, num_rows: int = 8, seed: int = 0, width: int | None = None) -> Experience:
    """What `assemble` would make: reference and importance only where the algorithm asks for them."""
    data, rng = experience(num_rows, seed, width), np.random.default_rng(seed + 50)
    noise, positive = rng.normal(0, 0.5, (num_rows, 64)), rng.uniform(0, 2, (num_rows, 64))
    mask, (rows, columns) = data.completion_mask, data.tokens.shape
    options = CASES[case]
    if "kl" in options:
        ref = np.where(mask, data.old_logprobs + noise[:rows, :columns], 0).astype(np.float32)
        data = replace(data, ref_logprobs=ref, kl_coef=KL_COEF)
    if "importance" in options:
        data = replace(data, importance=np.where(mask, positive[:rows, :columns], 0).astype(np.float32))
    return data


def learner_of(folder: Path, algorithm: GRPOConfig, budget: int = 4096, **options: Any) -> PolicyGradientLearner:
    sampling = SamplingConfig(temperature=TEMPERATURE, max_tokens=MAX_TOKENS)
    return PolicyGradientLearner(model_config(folder), spec_of(budget, **options), algorithm, sampling)


def step(folder: Path, case: str, data: Experience, budget: int = 4096) -> Step:
    learner = learner_of(folder, algorithm_of(case), budget)
    trap = GradientTrap(learner)
    return learner.update(data), trap.steps[0]


def picked(data: Experience, rows: Any) -> Experience:
    names = [field.name for field in fields(data)]
    arrays = {name: array[rows] for name in names if isinstance(array := getattr(data, name), np.ndarray)}
    return replace(data, **arrays)


# ---------------------------------------------------------------- the written equation, one token at a time


def token_terms(model: PreTrainedModel, data: Experience, algorithm: GRPOConfig) -> dict[int, list[dict[str, Tensor]]]:
    """What each completion token of each row adds: to the loss (not weighed), and to the metrics."""
    found: dict[int, list[dict[str, Tensor]]] = {}
    high = algorithm.clip_range_high or algorithm.clip_range
    for i in range(len(data)):
        ids = torch.from_numpy(data.tokens[i, : data.lengths[i]]).long()
        all_logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0] / TEMPERATURE, dim=-1)
        for t in map(int, np.flatnonzero(data.completion_mask[i])):
            before = all_logprobs[t - 1]
            logprob, entropy = before[ids[t]], -(before.exp() * before).sum()
            advantage = float(data.advantages[i, t])
            ratio = (logprob - float(data.old_logprobs[i, t])).exp()
            clipped = ratio.clamp(1 - algorithm.clip_range, 1 + high)
            gain = torch.minimum(ratio * advantage, clipped * advantage)
            if algorithm.dual_clip and advantage < 0:
                gain = gain.clamp(min=algorithm.dual_clip * advantage)
            loss = -gain if data.importance is None else -gain * float(data.importance[i, t])
            loss = loss - algorithm.entropy_coef * entropy
            terms = {"policy/ratio": ratio, "policy/entropy": entropy}
            if data.ref_logprobs is not None:
                d = logprob - float(data.ref_logprobs[i, t])
                kl = d**2 / 2 if algorithm.kl.estimator == "k2" else (-d).exp() - 1 + d
                loss = loss + data.kl_coef * kl
                terms["policy/kl_loss"] = kl
            if data.importance is not None:
                terms["policy/importance"] = torch.tensor(float(data.importance[i, t]))
            found.setdefault(i, []).append({"loss": loss, **terms})
    return found


def by_hand(folder: Path, case: str, data: Experience) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The loss as the papers average it, the metrics as means over tokens, and the gradient of the loss."""
    model, algorithm = plain(AutoModelForCausalLM, folder), algorithm_of(case)
    rows = list(token_terms(model, data, algorithm).values())
    losses = [torch.stack([token["loss"] for token in row]) for row in rows]
    match algorithm.aggregate:
        case "token_mean":
            loss = torch.cat(losses).mean()
        case "sequence_mean":
            loss = torch.stack([row.mean() for row in losses]).mean()
        case "max_tokens":
            loss = torch.stack([row.sum() / MAX_TOKENS for row in losses]).mean()
    loss.backward()
    tokens = [token for row in rows for token in row]
    means = {name: torch.stack([token[name] for token in tokens]).mean().item() for name in tokens[0] if name != "loss"}
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return {"policy/loss": loss.item(), **means}, gradients


def norm_of(gradients: dict[str, Tensor]) -> float:
    return torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt().item()


@pytest.mark.parametrize("case", CASES)
def test_loss_metrics_and_gradient_are_those_of_the_written_equation(folder, case):
    data = data_of(case, seed=2)
    expected_metrics, expected = by_hand(folder, case, data)
    metrics, found = step(folder, case, data)
    norm = norm_of(expected)
    assert norm > 0.05
    assert_same(found, expected, 2e-5 * norm)
    assert metrics["policy/optimizer/grad_norm"] == pytest.approx(norm, rel=1e-5)
    for name, value in expected_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=2e-6, abs=2e-6), name


@pytest.mark.parametrize("case", [case for case in CASES if case != "token_mean"])
def test_every_option_changes_the_gradient(folder, case):
    """Negative control: on this data no option is idle, so that the equation above could not be right without it."""
    data = data_of(case, seed=2)
    _, without = step(folder, "token_mean", replace(data, ref_logprobs=None, importance=None, kl_coef=0.0))
    _, found = step(folder, case, data)
    assert max((found[name] - without[name]).abs().max().item() for name in found) > 1e-3


@pytest.mark.parametrize("case", ["token_mean", "everything", "everything, sequence_mean", "everything, max_tokens"])
def test_order_micro_batches_and_padding_change_nothing(folder, case):
    data = data_of(case, seed=3)
    metrics, expected = step(folder, case, data)
    outside = np.arange(40) >= data.lengths[:, None]
    wide = data_of(case, seed=3, width=40)
    per_token = ("old_logprobs", "advantages", "ref_logprobs", "importance")
    junk: dict[str, Any] = {
        name: np.where(outside, np.float32(9), array)
        for name in per_token
        if (array := getattr(wide, name)) is not None
    }
    wide = replace(wide, tokens=np.where(outside, np.int32(33), wide.tokens), **junk)
    tolerance = 1e-6 * max(1.0, norm_of(expected))
    for budget in (1, 30, 4096):  # padded tokens: one row at a time, a few, all
        for rows in (np.arange(8), np.random.default_rng(budget).permutation(8)):
            for other in (data, wide):
                other_metrics, found = step(folder, case, picked(other, rows), budget)
                assert_same(found, expected, tolerance)
                assert other_metrics.keys() == metrics.keys()
                for name, value in metrics.items():
                    assert other_metrics[name] == pytest.approx(value, rel=2e-6, abs=2e-6), name


# ---------------------------------------------------------------- passes


def test_metrics_are_means_over_tokens_whatever_the_loss_is_divided_by(folder):
    data = data_of("token_mean", seed=4)
    found = {case: step(folder, case, data)[0] for case in ("token_mean", "sequence_mean", "max_tokens")}
    for name in ("policy/ratio", "policy/entropy", "policy/clip_fraction", "policy/approx_kl"):
        values = [metrics[name] for metrics in found.values()]
        assert values == pytest.approx([values[0]] * 3, rel=1e-6), name
    losses = [metrics["policy/loss"] for metrics in found.values()]
    assert np.ptp(losses) > 0.01  # the control: completions differ in length, so the three losses differ


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean", "max_tokens"])
def test_rows_without_a_valid_score_do_not_count(folder, aggregate):
    case = f"everything, {aggregate}" if aggregate != "token_mean" else "everything"
    data = data_of(case, seed=5)
    mask = data.completion_mask.copy()
    mask[[1, 4]] = False
    (metrics, expected), (other, found) = (
        step(folder, case, picked(data, [0, 2, 3, 5, 6, 7])),
        step(folder, case, replace(data, completion_mask=mask)),
    )
    assert_same(found, expected, 1e-6 * max(1.0, norm_of(expected)))
    for name, value in metrics.items():
        assert other[name] == pytest.approx(value, rel=2e-6, abs=2e-6), name


def test_a_minibatch_without_any_valid_row_is_no_step(folder):
    data = data_of("token_mean", num_rows=4, seed=6)
    mask = data.completion_mask.copy()
    mask[2] = False
    learner = learner_of(folder, algorithm_of("token_mean", minibatches=4, epochs=2))
    metrics = learner.update(replace(data, completion_mask=mask))
    assert learner.num_steps == 6
    assert metrics["policy/optimizer/skipped"] == 0
    assert np.isfinite(list(metrics.values())).all()


def test_a_minibatch_is_divided_by_its_own_tokens(folder):
    """Each step of a pass is the step on its rows alone: at a rate near 0 they all meet the same weights."""
    data = data_of("everything, sequence_mean", num_rows=6, seed=7)
    algorithm = algorithm_of("everything, sequence_mean", minibatches=3)
    learner = learner_of(folder, algorithm, learning_rate=1e-12)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(learner.spec.seed)).numpy()
    trap = GradientTrap(learner)
    metrics = learner.update(data)
    parts = [step(folder, "everything, sequence_mean", picked(data, rows)) for rows in np.array_split(order, 3)]
    for found, (_, expected) in zip(trap.steps, parts, strict=True):
        assert_same(found, expected, 2e-6 * max(1.0, norm_of(expected)))
    for name in ("policy/loss", "policy/entropy"):
        assert metrics[name] == pytest.approx(np.mean([part[name] for part, _ in parts]), rel=1e-5), name


def test_an_experience_without_rows_takes_no_step(folder):
    """As dynamic sampling leaves it where no group can be told apart."""
    learner = learner_of(folder, algorithm_of("everything"))
    before = weights_of(learner)
    empty = picked(data_of("everything"), np.arange(0))
    assert len(empty) == 0
    assert learner.update(empty) == {}
    assert not differs(before, weights_of(learner))
