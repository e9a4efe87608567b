"""A learner that was saved, built anew and restored goes on bit by bit as if it had never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from raylign.config import PPOConfig, SamplingConfig, SFTConfig
from raylign.learners.critic import CriticLearner
from raylign.learners.learner import Learner
from raylign.learners.policy_gradient import PolicyGradientLearner
from raylign.learners.sft import SFTLearner
from tests.unit.tiny import differs, experience, model_config, save_tiny, sequences, spec_of, weights_of

PPO = PPOConfig(name="ppo", minibatches=2, epochs=2)
SCHEDULE = {"warmup_ratio": 0.1, "schedule": "cosine", "weight_decay": 0.01}
DATA = sequences(12, seed=1)

State = tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, float]]]  # weights, moments, metrics by step


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("start")
    return {
        "policy": save_tiny(root / "policy", LlamaForCausalLM, LlamaConfig, attention_dropout=0.3),
        "critic": save_tiny(root / "critic", LlamaForSequenceClassification, LlamaConfig, num_labels=1),
    }


def build_sft(folder: Path) -> SFTLearner:
    spec = spec_of(40, total_steps=6, **SCHEDULE)
    learner = SFTLearner(model_config(folder, dropout=True), spec, SFTConfig(name="sft"))
    learner.set_data(DATA)
    return learner


def build_policy(folder: Path) -> PolicyGradientLearner:
    return PolicyGradientLearner(
        model_config(folder), spec_of(40, total_steps=24, **SCHEDULE), PPO, SamplingConfig(temperature=0.7)
    )


def build_critic(folder: Path) -> CriticLearner:
    return CriticLearner(model_config(folder), spec_of(40, total_steps=24, **SCHEDULE), PPO)


def sft_step(learner: SFTLearner, step: int) -> dict[str, float]:
    return learner.update_rows(np.arange(12)[2 * step :][:2] if step < 5 else np.array([0, 11]))


def ppo_step(learner: PolicyGradientLearner | CriticLearner, step: int) -> dict[str, float]:
    return learner.update(experience(5, seed=step))


CASES: dict[str, tuple[str, Callable[[Path], Learner], Callable[..., dict[str, float]]]] = {
    "sft_with_dropout": ("policy", build_sft, sft_step),
    "ppo_policy": ("policy", build_policy, ppo_step),
    "ppo_critic": ("critic", build_critic, ppo_step),
}


def state_of(learner: Learner, metrics: list[dict[str, float]]) -> State:
    moments = {
        f"{key}/{name}": tensor.clone()
        for name, parameter in learner.named.items()
        for key, tensor in learner.optimizer.state[parameter].items()
    }
    return weights_of(learner), moments, metrics


def uninterrupted(case: str, start: dict[str, Path]) -> State:
    role, build, step = CASES[case]
    learner = build(start[role])
    metrics = [step(learner, i) for i in range(6)]
    return state_of(learner, metrics[3:])


def interrupted(case: str, start: dict[str, Path], folder: Path) -> State:
    role, build, step = CASES[case]
    first = build(start[role])
    for i in range(3):
        step(first, i)
    first.save(str(folder))
    torch.manual_seed(99)  # whatever happened in the process since
    second = build(folder)
    second.restore(str(folder))
    return state_of(second, [step(second, i) for i in range(3, 6)])


@pytest.mark.parametrize("case", CASES)
def test_three_steps_and_three_more_are_six_steps(case, start, tmp_path):
    weights, moments, metrics = uninterrupted(case, start)
    again_weights, again_moments, again_metrics = interrupted(case, start, tmp_path)
    assert weights.keys() == again_weights.keys()
    assert moments.keys() == again_moments.keys()
    assert not differs(weights, again_weights)
    assert not differs(moments, again_moments)
    assert metrics == again_metrics


@pytest.mark.parametrize("case", CASES)
def test_without_the_random_state_the_steps_differ(case, start, tmp_path, monkeypatch):
    """Negative control: dropout (SFT) and minibatches (PPO) are random, and the test above would see it."""
    weights, _, _ = uninterrupted(case, start)
    monkeypatch.setattr(Learner, "restore_random", lambda *_: None)
    again_weights, _, _ = interrupted(case, start, tmp_path)
    assert differs(weights, again_weights)


def test_without_the_moments_the_steps_differ(start, tmp_path):
    """Negative control: the optimizer's state is part of what is restored."""
    weights, _, _ = uninterrupted("ppo_critic", start)
    learner = build_critic(start["critic"])
    for i in range(3):
        ppo_step(learner, i)
    learner.save(str(tmp_path))
    again = build_critic(tmp_path)
    again.restore(str(tmp_path))
    again.optimizer.state.clear()
    for i in range(3, 6):
        ppo_step(again, i)
    assert differs(weights, weights_of(again))


def test_counts_are_restored_and_moments_are_where_the_optimizer_keeps_them(start, tmp_path):
    learner = build_critic(start["critic"])
    ppo_step(learner, 0)
    learner.num_skipped, learner.skipped_in_a_row = 7, 2
    learner.save(str(tmp_path))
    again = build_critic(tmp_path)
    again.restore(str(tmp_path))
    assert (again.num_steps, again.num_skipped, again.skipped_in_a_row) == (4, 7, 2)
    for name, parameter in again.named.items():
        theirs = learner.optimizer.state[learner.named[name]]
        for key, tensor in again.optimizer.state[parameter].items():
            assert (tensor.dtype, tensor.device, tensor.shape) == (
                theirs[key].dtype,
                theirs[key].device,
                theirs[key].shape,
            )


def test_a_learner_can_be_saved_and_restored_before_its_first_step(start, tmp_path):
    learner = build_policy(start["policy"])
    learner.save(str(tmp_path))
    again = build_policy(tmp_path)
    again.restore(str(tmp_path))
    ppo_step(learner, 0)
    # Both share the process's random state, which PPO without dropout does not read.
    ppo_step(again, 0)
    assert not differs(weights_of(learner), weights_of(again))


def test_a_saved_folder_holds_safetensors_and_json_only(start, tmp_path):
    learner = build_sft(start["policy"])
    sft_step(learner, 0)
    learner.save(str(tmp_path))
    names = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert {"state/learner.json", "state/optimizer.safetensors", "state/random-0.safetensors"} <= names
    assert {Path(name).suffix for name in names} <= {".safetensors", ".json", ".jinja"}
