"""Learners of preferences: a step equals the written equations, row by row, and no split of it changes anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raylign.config import DPOConfig, KTOConfig, ORPOConfig, RewardModelConfig, SimPOConfig
from raylign.config.offline import CPOConfig
from raylign.learners.kto import KTOLearner
from raylign.learners.preference import CPOLearner, DPOLearner, ORPOLearner, SimPOLearner
from raylign.learners.reference import ReferenceModel
from raylign.learners.reward_model import RewardModelLearner
from raylign.types import FloatArray, LabelledSet, PairSet, Ragged, SequenceSet
from tests.unit.tiny import (
    GradientTrap,
    assert_same,
    completion_logprob,
    labelled,
    model_config,
    pairs,
    plain,
    ref_logprobs,
    save_tiny,
    sequences,
    spec_of,
    weights_of,
)

BETA, GAMMA, SMOOTHING, COEF = 0.3, 0.5, 0.1, 0.7
GOOD, BAD = 1.2, 0.8  # KTO's weights

Step = tuple[dict[str, float], dict[str, Tensor]]  # metrics and gradients of one optimizer step

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("offline")
    return {
        "policy": save_tiny(root / "policy", Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True),
        "reference": save_tiny(root / "reference", LlamaForCausalLM, LlamaConfig, seed=1),
        "reward": save_tiny(root / "reward", LlamaForSequenceClassification, LlamaConfig, num_labels=1),
    }


# ---------------------------------------------------------------- the written equations, one pair or row at a time


@dataclass(frozen=True)
class PlainPair:
    """Logprobs of a pair: policy with gradient, reference as numbers, and the lengths of the completions."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: float
    ref_rejected: float
    num_chosen: int
    num_rejected: int

    @property
    def log_ratio(self) -> Tensor:
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)

    @property
    def mean_log_ratio(self) -> Tensor:
        chosen = (self.chosen - self.ref_chosen) / self.num_chosen
        return chosen - (self.rejected - self.ref_rejected) / self.num_rejected

    @property
    def nll(self) -> Tensor:
        return -self.chosen / self.num_chosen


def cdpo(pair: PlainPair) -> Tensor:
    m = BETA * pair.log_ratio
    return -(1 - SMOOTHING) * logsigmoid(m) - SMOOTHING * logsigmoid(-m)


def robust(pair: PlainPair) -> Tensor:
    m = BETA * pair.log_ratio
    return (-(1 - SMOOTHING) * logsigmoid(m) + SMOOTHING * logsigmoid(-m)) / (1 - 2 * SMOOTHING)


def simpo(pair: PlainPair) -> Tensor:
    difference = pair.chosen / pair.num_chosen - pair.rejected / pair.num_rejected
    return -logsigmoid(BETA * difference - GAMMA)


def cpo(pair: PlainPair) -> Tensor:
    m = BETA * (pair.chosen - pair.rejected)
    return -(1 - SMOOTHING) * logsigmoid(m) - SMOOTHING * logsigmoid(-m)


def orpo(pair: PlainPair) -> Tensor:
    def log_odds(mean: Tensor) -> Tensor:
        return mean - torch.log(1 - mean.exp())

    odds_ratio = log_odds(pair.chosen / pair.num_chosen) - log_odds(pair.rejected / pair.num_rejected)
    return pair.nll - BETA * logsigmoid(odds_ratio)


def plain_pairs(equation: Callable[[PlainPair], Tensor], folders, data: PairSet) -> tuple[float, dict[str, Tensor]]:
    model = plain(AutoModelForCausalLM, folders["policy"])
    ref_chosen, ref_rejected = ref_logprobs(len(data))
    losses = []
    for i in range(len(data)):
        pair = PlainPair(
            chosen=completion_logprob(model, data.chosen, i),
            rejected=completion_logprob(model, data.rejected, i),
            ref_chosen=float(ref_chosen[i]),
            ref_rejected=float(ref_rejected[i]),
            num_chosen=int(data.chosen.completion_mask[i].sum()),
            num_rejected=int(data.rejected.completion_mask[i].sum()),
        )
        losses.append(equation(pair))
    return with_gradients(model, torch.stack(losses).mean())


def kto_reference(num_rows: int) -> tuple[FloatArray, FloatArray]:
    """So low on the mismatched rows that the policy has moved away from it."""
    ref, ref_mismatched = ref_logprobs(num_rows)
    return ref, ref_mismatched - 10


def plain_kto(folders, data: LabelledSet) -> tuple[float, dict[str, Tensor]]:
    model = plain(AutoModelForCausalLM, folders["policy"])
    ref, ref_mismatched = kto_reference(len(data))
    with torch.no_grad():
        moved = [completion_logprob(model, data.mismatched, i).item() for i in range(len(data))]
    kl = max(0.0, float(np.mean(np.array(moved) - ref_mismatched)))
    assert kl > 1
    losses = []
    for i in range(len(data)):
        log_ratio = completion_logprob(model, data.sequences, i) - float(ref[i])
        if data.desirable[i]:
            losses.append(GOOD * (1 - torch.sigmoid(BETA * (log_ratio - kl))))
        else:
            losses.append(BAD * (1 - torch.sigmoid(BETA * (kl - log_ratio))))
    return with_gradients(model, torch.stack(losses).mean())


def plain_reward(folders, data: PairSet) -> tuple[float, dict[str, Tensor]]:
    model = plain(AutoModelForSequenceClassification, folders["reward"])
    assert data.margin is not None

    def score(side: SequenceSet, row: int) -> Tensor:
        return model(input_ids=torch.from_numpy(side.tokens[row])[None].long()).logits[0, 0]

    losses = [
        -logsigmoid(score(data.chosen, i) - score(data.rejected, i) - float(data.margin[i])) for i in range(len(data))
    ]
    return with_gradients(model, torch.stack(losses).mean())


def with_gradients(model: PreTrainedModel, loss: Tensor) -> tuple[float, dict[str, Tensor]]:
    loss.backward()
    return loss.item(), {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def margin_pairs(num_pairs: int = 6, seed: int = 0) -> PairSet:
    margin = np.random.default_rng(seed).uniform(0, 2, num_pairs).astype(np.float32)
    return replace(pairs(num_pairs, seed), margin=margin)


# ---------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Case:
    learner: Any
    algorithm: Any
    make: Callable[..., Any]
    by_hand: Callable[..., tuple[float, dict[str, Tensor]]]


def dpo(equation: Callable[[PlainPair], Tensor], **options: Any) -> Case:
    algorithm = DPOConfig(name="dpo", beta=BETA, **options)
    return Case(DPOLearner, algorithm, pairs, lambda folders, data: plain_pairs(equation, folders, data))


CASES = {
    "dpo": dpo(lambda p: -logsigmoid(BETA * p.log_ratio)),
    "cdpo": dpo(cdpo, label_smoothing=SMOOTHING),
    "robust": dpo(robust, loss="robust", label_smoothing=SMOOTHING),
    "ipo": dpo(lambda p: (p.log_ratio - 1 / (2 * BETA)) ** 2, loss="ipo"),
    "hinge": dpo(lambda p: torch.relu(1 - BETA * p.log_ratio), loss="hinge"),
    "dpo, per token": dpo(lambda p: -logsigmoid(BETA * p.mean_log_ratio), length_normalised=True),
    "ipo, per token": dpo(
        lambda p: (p.mean_log_ratio - 1 / (2 * BETA)) ** 2, loss="ipo", length_normalised=True
    ),
    "dpo + sft": dpo(lambda p: -logsigmoid(BETA * p.log_ratio) + COEF * p.nll, sft_coef=COEF),
    "simpo": Case(
        SimPOLearner,
        SimPOConfig(name="simpo", beta=BETA, gamma=GAMMA),
        pairs,
        lambda folders, data: plain_pairs(simpo, folders, data),
    ),
    "simpo + sft": Case(
        SimPOLearner,
        SimPOConfig(name="simpo", beta=BETA, gamma=GAMMA, sft_coef=COEF),
        pairs,
        lambda folders, data: plain_pairs(lambda p: simpo(p) + COEF * p.nll, folders, data),
    ),
    "cpo": Case(
        CPOLearner,
        CPOConfig(name="cpo", beta=BETA, label_smoothing=SMOOTHING, sft_coef=COEF),
        pairs,
        lambda folders, data: plain_pairs(lambda p: cpo(p) + COEF * p.nll, folders, data),
    ),
    "orpo": Case(
        ORPOLearner,
        ORPOConfig(name="orpo", beta=BETA),
        pairs,
        lambda folders, data: plain_pairs(orpo, folders, data),
    ),
    "kto": Case(
        KTOLearner,
        KTOConfig(name="kto", beta=BETA, desirable_weight=GOOD, undesirable_weight=BAD),
        labelled,
        plain_kto,
    ),
    "reward_model, margin": Case(
        RewardModelLearner, RewardModelConfig(name="reward_model", margin=True), margin_pairs, plain_reward
    ),
}  # fmt: skip


def learner_of(folders, case: str, data: Any, budget: int = 4096, **options: Any) -> Any:
    chosen = CASES[case]
    folder = folders["reward" if chosen.learner is RewardModelLearner else "policy"]
    learner = chosen.learner(model_config(folder), spec_of(budget, **options), chosen.algorithm)
    reference = {DPOLearner: ref_logprobs, KTOLearner: kto_reference}.get(chosen.learner, lambda num_rows: None)
    learner.set_data(data, reference(len(data)))
    return learner


def step(folders, case: str, data: Any, rows=None, budget: int = 4096) -> Step:
    learner = learner_of(folders, case, data, budget)
    trap = GradientTrap(learner)
    return learner.update_rows(np.arange(len(data)) if rows is None else np.asarray(rows)), trap.steps[0]


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_written_equation(folders, case):
    data = CASES[case].make(6, seed=2)
    expected_loss, expected = CASES[case].by_hand(folders, data)
    metrics, found = step(folders, case, data)
    norm = torch.stack([g.square().sum() for g in expected.values()]).sum().sqrt().item()
    assert metrics["loss"] == pytest.approx(expected_loss, rel=1e-6, abs=2e-6)
    assert metrics["optimizer/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 0.01
    assert_same(found, expected, 2e-5 * norm)


@pytest.mark.parametrize("case", CASES)
def test_order_and_micro_batches_and_the_padding_they_bring_change_nothing(folders, case):
    data = CASES[case].make(8, seed=3)
    metrics, expected = step(folders, case, data)
    for budget in (1, 30):  # one row at a time, so no padding at all; a few
        rows = np.random.default_rng(budget).permutation(8)
        other_metrics, found = step(folders, case, data, rows, budget)
        assert_same(found, expected, 1e-6 * max(1.0, metrics["optimizer/grad_norm"]))
        assert other_metrics.keys() == metrics.keys()
        for name, value in metrics.items():
            assert other_metrics[name] == pytest.approx(value, rel=2e-6, abs=2e-6), name


def longer(side: SequenceSet, row: int) -> SequenceSet:
    """`side` with a row that is much longer than all others."""
    rng = np.random.default_rng(9)
    tokens = [side.tokens[i] if i != row else rng.integers(0, 60, 60) for i in range(len(side))]
    masks = [side.completion_mask[i] if i != row else np.arange(60) >= 5 for i in range(len(side))]
    return SequenceSet(Ragged.from_rows(tokens, np.int32), Ragged.from_rows(masks, np.bool_))


@pytest.mark.parametrize("case", CASES)
def test_a_much_longer_neighbour_adds_its_own_gradient_and_nothing_else(folders, case):
    data = CASES[case].make(5, seed=4)
    if isinstance(data, LabelledSet):
        data = replace(data, sequences=longer(data.sequences, 4))
    else:
        data = replace(data, rejected=longer(data.rejected, 4))
    parts = [step_below_reference(folders, case, data, rows) for rows in ([0, 1, 2, 3], [4], [0, 1, 2, 3, 4])]
    (_, short), (_, long), (metrics, both) = parts
    summed = {name: (4 * short[name] + long[name]) / 5 for name in short}
    assert_same(both, summed, 2e-6 * max(1.0, metrics["optimizer/grad_norm"]))


def step_below_reference(folders, case: str, data: Any, rows: list[int]) -> Step:
    """A step in which KTO's reference point is 0 whatever the rows are, so that they do not share it."""
    learner = learner_of(folders, case, data)
    if case == "kto":
        learner.ref_mismatched = torch.zeros(len(data))
    trap = GradientTrap(learner)
    return learner.update_rows(np.array(rows)), trap.steps[0]


def test_lengths_matter_only_where_logprobs_are_per_token(folders):
    """Negative control: the per-token losses are not the summed ones under another name."""
    data = pairs(6, seed=2)
    losses = {case: step(folders, case, data)[0]["loss"] for case in ("dpo", "dpo, per token", "ipo", "ipo, per token")}
    assert abs(losses["dpo"] - losses["dpo, per token"]) > 0.05
    assert abs(losses["ipo"] - losses["ipo, per token"]) > 0.05


def test_the_sft_term_is_told_apart(folders):
    data = pairs(6, seed=2)
    (bare, _), (mixed, _) = step(folders, "dpo", data), step(folders, "dpo + sft", data)
    assert "sft/nll" not in bare
    assert mixed["loss"] == pytest.approx(bare["loss"] + COEF * mixed["sft/nll"], rel=1e-6)


def test_dpo_without_its_reference_is_refused(folders):
    learner = DPOLearner(model_config(folders["policy"]), spec_of(), DPOConfig(name="dpo"))
    with pytest.raises(ValueError, match="reference logprobs"):
        learner.set_data(pairs(2))


# ---------------------------------------------------------------- KTO


def test_the_reference_point_is_that_of_the_mismatched_rows_of_the_step(folders):
    """Their KL is far above 0 here, moves with them, and is found before any weight has changed."""
    data = labelled(6, seed=5)
    learner = learner_of(folders, "kto", data)
    learner.ref_mismatched = torch.full((6,), -90.0)
    model = plain(AutoModelForCausalLM, folders["policy"])
    rows = np.array([4, 1, 2])
    with torch.no_grad():
        expected = np.mean([completion_logprob(model, data.mismatched, int(i)).item() + 90 for i in rows])
    metrics = learner.update_rows(rows)
    assert expected > 10
    assert metrics["kto/kl"] == pytest.approx(expected, rel=1e-5)


def test_rewards_are_means_over_their_own_kind(folders):
    data = replace(labelled(6, seed=5), desirable=np.array([1, 0, 0, 0, 1, 0], dtype=np.bool_))
    metrics, _ = step(folders, "kto", data)
    model = plain(AutoModelForCausalLM, folders["policy"])
    ref, _ = ref_logprobs(6)
    with torch.no_grad():
        rewards = [BETA * (completion_logprob(model, data.sequences, i).item() - ref[i]) for i in range(6)]
    assert metrics["kto/desirable_reward"] == pytest.approx(np.mean([rewards[0], rewards[4]]), abs=1e-5)
    assert metrics["kto/undesirable_reward"] == pytest.approx(np.mean(np.array(rewards)[[1, 2, 3, 5]]), abs=1e-5)
    assert not any(name.startswith("kto/num_") for name in metrics)


def test_a_step_of_one_kind_has_no_mean_of_the_other(folders):
    data = replace(labelled(4, seed=5), desirable=np.ones(4, dtype=np.bool_))
    metrics, _ = step(folders, "kto", data)
    assert "kto/desirable_reward" in metrics
    assert "kto/undesirable_reward" not in metrics
    assert "logprobs/undesirable" not in metrics


def test_the_reference_scores_both_sides_of_pairs_and_of_labelled_rows(folders):
    reference = ReferenceModel(model_config(folders["reference"]), 30, temperature=0.5)
    model = plain(AutoModelForCausalLM, folders["reference"])
    for data in (pairs(5, seed=7), labelled(5, seed=7)):
        found = reference.dataset_logprobs(data, 1, 4)
        for side, logprobs in zip(data.sides, found, strict=True):
            with torch.no_grad():
                expected = [completion_logprob(model, side, i).item() for i in (1, 2, 3)]
            np.testing.assert_allclose(logprobs, expected, atol=2e-5)


# ---------------------------------------------------------------- reward model


def test_a_margin_asks_for_more(folders):
    data = margin_pairs(6, seed=2)
    learner = learner_of(folders, "reward_model, margin", data)
    before = weights_of(learner)
    held_out = learner.evaluate(data)
    assert all(torch.equal(before[name], value) for name, value in weights_of(learner).items())
    metrics = learner.update_rows(np.arange(6))
    assert held_out["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
    none = RewardModelLearner(model_config(folders["reward"]), spec_of(), RewardModelConfig(name="reward_model"))
    none.set_data(data)
    assert none.evaluate(data)["loss"] < held_out["loss"] - 0.1
    assert none.evaluate(data)["reward_model/margin"] == pytest.approx(held_out["reward_model/margin"], abs=1e-6)


def test_pairs_without_the_margin_that_is_asked_for_are_refused(folders):
    learner = learner_of(folders, "reward_model, margin", pairs(2))
    with pytest.raises(ValueError, match="load them with margin=True"):
        learner.update_rows(np.arange(2))


@pytest.mark.filterwarnings("error")
def test_a_dataset_in_read_only_memory_is_read(folders):
    """As the object store hands it out."""
    for case in ("dpo", "kto", "reward_model, margin"):
        data = CASES[case].make(4, seed=1)
        for side in data.sides:
            side.tokens.values.flags.writeable = side.completion_mask.values.flags.writeable = False
        for array in (getattr(data, "margin", None), getattr(data, "desirable", None)):
            if array is not None:
                array.flags.writeable = False
        learner = learner_of(folders, case, data)
        assert learner.update_rows(np.arange(4))["tokens/trained"] > 0


def test_sequences_and_pairs_count_the_tokens_they_learn(folders):
    data = labelled(6, seed=3)
    metrics, _ = step(folders, "kto", data, rows=[0, 5])
    expected = data.sequences.completion_mask[0].sum() + data.sequences.completion_mask[5].sum()
    assert metrics["tokens/trained"] == expected
    both = sequences(3, seed=1), sequences(3, seed=2)
    metrics, _ = step(folders, "simpo", PairSet(*both), rows=[0, 2])
    assert metrics["tokens/trained"] == sum(side.completion_mask[i].sum() for side in both for i in (0, 2))
