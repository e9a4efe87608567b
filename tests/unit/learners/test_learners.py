"""Learners: loss and gradient of a step equal a plain computation, row by row, with transformers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

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

from raylign.algorithms.loss import LossSum
from raylign.config import DPOConfig, PPOConfig, RewardModelConfig, SamplingConfig, SFTConfig
from raylign.learners.critic import CriticLearner
from raylign.learners.policy_gradient import PolicyGradientLearner
from raylign.learners.preference import DPOLearner
from raylign.learners.reference import ReferenceModel
from raylign.learners.reward_model import RewardModelLearner
from raylign.learners.sft import SFTLearner
from raylign.types import BoolArray, Experience, LongArray, PairSet, Ragged, RolloutBatch, SequenceSet
from tests.unit.tiny import (
    GradientTrap,
    assert_same,
    completion_logprob,
    differs,
    experience,
    model_config,
    pairs,
    plain,
    plain_logprobs,
    ref_logprobs,
    save_tiny,
    sequences,
    spec_of,
    weights_of,
)

BETA = 0.3
TEMPERATURE = 0.7
PPO = PPOConfig(name="ppo")
CLIP = PPO.clip_range
VALUE_CLIP = 0.2
BUDGETS = [1, 30, 4096]  # one row at a time, a few, all

Step = tuple[dict[str, float], dict[str, Tensor]]  # metrics and gradients of one optimizer step


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("learners")
    return {
        "policy": save_tiny(root / "policy", Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True),
        "reference": save_tiny(root / "reference", LlamaForCausalLM, LlamaConfig, seed=1),
        "reward": save_tiny(root / "reward", LlamaForSequenceClassification, LlamaConfig, num_labels=1),
        "critic": save_tiny(root / "critic", LlamaForSequenceClassification, LlamaConfig, num_labels=1),
    }


# ---------------------------------------------------------------- the steps of raylign


def sft_step(folders, data: SequenceSet, rows=None, budget: int = 4096) -> Step:
    learner = SFTLearner(model_config(folders["policy"]), spec_of(budget), SFTConfig(name="sft"))
    learner.set_data(data)
    trap = GradientTrap(learner)
    return learner.update_rows(np.arange(len(data)) if rows is None else rows), trap.steps[0]


def dpo_step(folders, data: PairSet, rows=None, budget: int = 4096) -> Step:
    learner = DPOLearner(model_config(folders["policy"]), spec_of(budget), DPOConfig(name="dpo", beta=BETA))
    learner.set_data(data, ref_logprobs(len(data)))
    trap = GradientTrap(learner)
    return learner.update_rows(np.arange(len(data)) if rows is None else rows), trap.steps[0]


def reward_step(folders, data: PairSet, rows=None, budget: int = 4096) -> Step:
    config = RewardModelConfig(name="reward_model")
    learner = RewardModelLearner(model_config(folders["reward"]), spec_of(budget), config)
    learner.set_data(data)
    trap = GradientTrap(learner)
    return learner.update_rows(np.arange(len(data)) if rows is None else rows), trap.steps[0]


def policy_step(folders, data: Experience, rows=None, budget: int = 4096) -> Step:
    learner = PolicyGradientLearner(
        model_config(folders["policy"]), spec_of(budget), PPO, SamplingConfig(temperature=TEMPERATURE)
    )
    trap = GradientTrap(learner)
    return learner.update(data if rows is None else picked(data, rows)), trap.steps[0]


def critic_step(folders, data: Experience, rows=None, budget: int = 4096) -> Step:
    learner = CriticLearner(model_config(folders["critic"]), spec_of(budget), PPO)
    trap = GradientTrap(learner)
    return learner.update(data if rows is None else picked(data, rows)), trap.steps[0]


def picked(data: Experience, rows) -> Experience:
    arrays: dict[str, Any] = {name: a[rows] for name, a in vars(data).items() if isinstance(a, np.ndarray)}
    return Experience(**arrays)


# ---------------------------------------------------------------- the same, by hand


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def plain_sft(folders, data: SequenceSet) -> tuple[float, dict[str, Tensor]]:
    model = plain(AutoModelForCausalLM, folders["policy"])
    num_tokens = sum(int(data.completion_mask[i].sum()) for i in range(len(data)))
    loss = -torch.stack([completion_logprob(model, data, i) for i in range(len(data))]).sum() / num_tokens
    return loss.item(), gradients(model, loss)


def plain_dpo(folders, data: PairSet) -> tuple[float, dict[str, Tensor]]:
    model = plain(AutoModelForCausalLM, folders["policy"])
    ref_chosen, ref_rejected = ref_logprobs(len(data))
    losses = []
    for i in range(len(data)):
        chosen = completion_logprob(model, data.chosen, i) - float(ref_chosen[i])
        rejected = completion_logprob(model, data.rejected, i) - float(ref_rejected[i])
        losses.append(-logsigmoid(BETA * (chosen - rejected)))
    loss = torch.stack(losses).mean()
    return loss.item(), gradients(model, loss)


def plain_reward(folders, data: PairSet) -> tuple[float, dict[str, Tensor]]:
    model = plain(AutoModelForSequenceClassification, folders["reward"])

    def score(side: SequenceSet, row: int) -> Tensor:
        return model(input_ids=torch.from_numpy(side.tokens[row])[None].long()).logits[0, 0]

    losses = [-logsigmoid(score(data.chosen, i) - score(data.rejected, i)) for i in range(len(data))]
    loss = torch.stack(losses).mean()
    return loss.item(), gradients(model, loss)


def plain_policy(folders, data: Experience) -> tuple[float, dict[str, Tensor]]:
    model = plain(AutoModelForCausalLM, folders["policy"])
    losses = []
    for i in range(len(data)):
        logprobs = plain_logprobs(model, data.tokens[i, : data.lengths[i]], TEMPERATURE)
        for t in np.flatnonzero(data.completion_mask[i]):
            ratio = (logprobs[t] - float(data.old_logprobs[i, t])).exp()
            advantage = float(data.advantages[i, t])
            losses.append(-torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage))
    loss = torch.stack(losses).mean()
    return loss.item(), gradients(model, loss)


def plain_critic(folders, data: Experience) -> tuple[float, dict[str, Tensor]]:
    model = plain(AutoModelForSequenceClassification, folders["critic"])
    old_values, returns = cast(Any, data.values), cast(Any, data.returns)
    losses = []
    for i in range(len(data)):
        ids = torch.from_numpy(data.tokens[i, : data.lengths[i]])[None].long()
        values = model.get_submodule("score")(model.base_model(input_ids=ids).last_hidden_state)[0, :, 0]
        for t in np.flatnonzero(data.completion_mask[i]):
            value, old, target = values[t - 1], float(old_values[i, t]), float(returns[i, t])
            clipped = old + (value - old).clamp(-VALUE_CLIP, VALUE_CLIP)
            losses.append(0.5 * torch.maximum((value - target) ** 2, (clipped - target) ** 2))
    loss = torch.stack(losses).mean()
    return loss.item(), gradients(model, loss)


CASES = {
    "sft": (sft_step, plain_sft, sequences, "loss"),
    "dpo": (dpo_step, plain_dpo, pairs, "loss"),
    "reward_model": (reward_step, plain_reward, pairs, "loss"),
    "ppo_policy": (policy_step, plain_policy, experience, "policy/loss"),
    "ppo_critic": (critic_step, plain_critic, experience, "critic/loss"),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_plain_computation(folders, case):
    step, by_hand, make, loss_name = CASES[case]
    data = make(seed=2)
    expected_loss, expected = by_hand(folders, data)
    metrics, found = step(folders, data)
    norm = torch.stack([g.square().sum() for g in expected.values()]).sum().sqrt().item()
    assert metrics[loss_name] == pytest.approx(expected_loss, abs=2e-6)
    prefix = loss_name.removesuffix("loss")
    assert metrics[f"{prefix}optimizer/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1
    assert_same(found, expected, 2e-5 * norm)


@pytest.mark.parametrize("case", CASES)
def test_order_and_micro_batches_change_nothing(folders, case):
    step, _, make, loss_name = CASES[case]
    data = make(num_rows=8, seed=3) if make is not pairs else pairs(8, seed=3)
    metrics, expected = step(folders, data)
    norm = metrics[f"{loss_name.removesuffix('loss')}optimizer/grad_norm"]
    for budget in BUDGETS:
        for rows in (None, np.random.default_rng(0).permutation(8)):
            other_metrics, found = step(folders, data, rows, budget)
            assert_same(found, expected, 1e-6 * max(1.0, norm))
            for name, value in metrics.items():
                assert other_metrics[name] == pytest.approx(value, rel=2e-6, abs=2e-6), name
    assert metrics[loss_name] != 0


@pytest.mark.parametrize("step", [policy_step, critic_step])
def test_what_stands_outside_of_the_rows_changes_nothing(folders, step):
    narrow = experience(6, seed=4)
    wide = experience(6, seed=4, width=40)
    outside = np.arange(40) >= wide.lengths[:, None]
    junk = {n: np.where(outside, np.float32(9), getattr(wide, n)) for n in ("old_logprobs", "advantages", "returns")}
    junk["tokens"] = np.where(outside, np.int32(33), wide.tokens)
    (_, expected), (_, found) = step(folders, narrow), step(folders, replace(wide, **junk))
    assert_same(found, expected, 1e-6)


# ---------------------------------------------------------------- negative controls


def shifted(side: SequenceSet, by: int) -> SequenceSet:
    """The completion mask one token to the left or right of where it belongs; token 0 stays out."""
    masks = []
    for row in range(len(side)):
        mask = np.roll(side.completion_mask[row], by)
        mask[0] = False
        masks.append(mask)
    return replace(side, completion_mask=Ragged.from_rows(masks, np.bool_))


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("case", ["sft", "dpo", "ppo_policy", "ppo_critic"])
def test_a_completion_mask_shifted_by_one_is_seen(folders, case, by):
    step, by_hand, make, loss_name = CASES[case]
    data = make(seed=2)
    expected_loss, _ = by_hand(folders, data)
    if isinstance(data, SequenceSet):
        wrong = shifted(data, by)
    elif isinstance(data, PairSet):
        wrong = PairSet(shifted(data.chosen, by), shifted(data.rejected, by))
    else:
        mask: BoolArray = np.roll(data.completion_mask, by, axis=1)
        mask[:, 0] = False
        wrong = replace(data, completion_mask=mask)
    metrics, _ = step(folders, wrong)
    assert abs(metrics[loss_name] - expected_loss) > 1e-3


def test_the_reward_model_reads_the_last_token(folders):
    data = pairs(seed=2)
    last_changed = replace(
        data.chosen, tokens=Ragged.from_rows([np.append(row[:-1], 40) for row in rows_in(data.chosen)], np.int32)
    )
    right, _ = reward_step(folders, data)
    wrong, _ = reward_step(folders, PairSet(last_changed, data.rejected))
    assert abs(right["loss"] - wrong["loss"]) > 1e-3


def rows_in(side: SequenceSet) -> list[np.ndarray]:
    return [side.tokens[i] for i in range(len(side))]


# ---------------------------------------------------------------- results without a step


def rollout(data: Experience) -> RolloutBatch:
    num_rows = len(data)
    return RolloutBatch(
        tokens=data.tokens,
        prompt_lengths=np.argmax(data.completion_mask, axis=1).astype(np.int32),
        completion_mask=data.completion_mask,
        logprobs=data.old_logprobs,
        finished=np.ones(num_rows, dtype=np.bool_),
        prompt_rows=np.arange(num_rows),
        policy_version=np.zeros(num_rows, dtype=np.int64),
    )


def test_policy_and_reference_score_a_rollout_at_the_sampling_temperature(folders):
    data = experience(5, seed=6, width=30)
    policy = PolicyGradientLearner(
        model_config(folders["policy"]), spec_of(50), PPO, SamplingConfig(temperature=TEMPERATURE)
    )
    reference = ReferenceModel(model_config(folders["policy"]), 50, TEMPERATURE)
    found = policy.logprobs(rollout(data))
    model = plain(AutoModelForCausalLM, folders["policy"])
    with torch.no_grad():
        for i in range(len(data)):
            length = data.lengths[i]
            expected = plain_logprobs(model, data.tokens[i, :length], TEMPERATURE).numpy()
            np.testing.assert_allclose(found[i, :length], expected * data.completion_mask[i, :length], atol=1e-5)
    np.testing.assert_array_equal(reference.logprobs(rollout(data)), found)
    assert policy.pop_metrics()["time/logprobs"] > 0
    assert policy.pop_metrics() == {}
    assert reference.pop_metrics()["time/ref_logprobs"] > 0
    assert not any(p.requires_grad for p in reference.model.parameters())


def test_reference_sums_whole_completions_at_temperature_one(folders):
    data = sequences(7, seed=7)
    reference = ReferenceModel(model_config(folders["reference"]), 30, TEMPERATURE)
    found = np.concatenate([reference.sequence_logprobs(data, 0, 3), reference.sequence_logprobs(data, 3, 7)])
    model = plain(AutoModelForCausalLM, folders["reference"])
    with torch.no_grad():
        expected = [completion_logprob(model, data, i).item() for i in range(7)]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_critic_values_are_those_that_its_loss_sees(folders):
    data = experience(5, seed=8)
    critic = CriticLearner(model_config(folders["critic"]), spec_of(40), PPO)
    values = critic.values(rollout(data))
    # With old = value and return = value the loss is 0.
    metrics = critic.update(replace(data, values=values, returns=values))
    assert metrics["critic/loss"] == pytest.approx(0, abs=1e-10)
    assert metrics["value/mean"] == pytest.approx(values[data.completion_mask].mean(), abs=1e-6)


def test_held_out_evaluation_is_the_loss_of_a_step_and_changes_nothing(folders):
    data = pairs(seed=9)
    config = RewardModelConfig(name="reward_model")
    learner = RewardModelLearner(model_config(folders["reward"]), spec_of(40), config)
    learner.set_data(data)
    before = weights_of(learner)
    held_out = learner.evaluate(data)
    assert not differs(before, weights_of(learner))
    metrics = learner.update_rows(np.arange(len(data)))
    for name in ("loss", "reward_model/accuracy", "reward_model/margin"):
        assert held_out[name] == pytest.approx(metrics[name], abs=1e-5)


def test_weights_leave_in_buckets_that_hold_each_name_once(folders):
    learner = SFTLearner(model_config(folders["policy"]), spec_of(), SFTConfig(name="sft"))
    (whole,) = learner.weights("float32")
    buckets = learner.weights("float32", bucket_bytes=5000)
    assert len(buckets) > 3
    names = [name for bucket in buckets for name in bucket]
    assert names == list(whole)
    for bucket in buckets:
        assert len(bucket) == 1 or sum(array.nbytes for array in bucket.values()) <= 5000
        for name, array in bucket.items():
            np.testing.assert_array_equal(array, whole[name])


# ---------------------------------------------------------------- passes over an experience


def test_epochs_and_minibatches_are_the_number_of_steps_and_every_row_is_in_each_pass(folders):
    algorithm = PPOConfig(name="ppo", epochs=3, minibatches=2)
    learner = CriticLearner(model_config(folders["critic"]), spec_of(learning_rate=1e-12), algorithm)
    trap = GradientTrap(learner)
    data = experience(5, seed=12)
    seen: list[int] = []
    compute = learner._loss

    def counted(experience: Experience, rows: LongArray) -> LossSum:
        seen.extend(rows)
        return compute(experience, rows)

    learner._loss = counted
    learner.update(data)
    assert learner.num_steps == len(trap.steps) == 6
    assert sorted(seen) == sorted([*range(5)] * 3)


def test_rows_without_a_valid_score_are_not_learned_from(folders):
    data = experience(6, seed=13)
    mask = data.completion_mask.copy()
    mask[[1, 4]] = False
    masked = replace(data, completion_mask=mask)
    kept = picked(data, [0, 2, 3, 5])
    for step in (policy_step, critic_step):
        (metrics, expected), (other, found) = step(folders, kept), step(folders, masked)
        assert_same(found, expected, 1e-6)
        assert other.keys() == metrics.keys()


def test_an_experience_without_any_valid_score_takes_no_step(folders):
    data = experience(3, seed=14)
    learner = PolicyGradientLearner(model_config(folders["policy"]), spec_of(), PPO, SamplingConfig(temperature=1.0))
    before = weights_of(learner)
    assert learner.update(replace(data, completion_mask=np.zeros_like(data.completion_mask))) == {}
    assert not differs(before, weights_of(learner))


def test_skipped_steps_of_an_update_are_a_count_and_not_a_mean(folders):
    data = experience(4, seed=15)
    algorithm = PPOConfig(name="ppo", minibatches=4)
    learner = PolicyGradientLearner(
        model_config(folders["policy"]), spec_of(), algorithm, SamplingConfig(temperature=1.0)
    )
    last = torch.randperm(4, generator=torch.Generator().manual_seed(learner.spec.seed))[-1]
    advantages = data.advantages.copy()
    advantages[last, data.completion_mask[last]] = np.nan
    metrics = learner.update(replace(data, advantages=advantages))
    assert metrics["policy/optimizer/skipped"] == 1 == learner.num_skipped
