"""Two processes that share a step take the step of one."""

from __future__ import annotations

import multiprocessing
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification, Qwen2Config, Qwen2ForCausalLM

from raylign.config import (
    DPOConfig,
    GRPOConfig,
    ImportanceConfig,
    KTOConfig,
    OnlineDPOConfig,
    ORPOConfig,
    PPOConfig,
    SamplingConfig,
)
from raylign.learners.critic import CriticLearner
from raylign.learners.kto import KTOLearner
from raylign.learners.online_dpo import OnlineDPOLearner
from raylign.learners.policy_gradient import PolicyGradientLearner
from raylign.learners.preference import DPOLearner, ORPOLearner
from raylign.learners.world import World, host_meeting
from raylign.models.ranks import ALONE
from raylign.types import PairExperience
from tests.unit.ranks import run_ranks
from tests.unit.tiny import (
    GradientTrap,
    assert_same,
    experience,
    labelled,
    model_config,
    pairs,
    save_tiny,
    spec_of,
)

DEADLINE = 200.0
PPO = PPOConfig(name="ppo", minibatches=2)
# Every term of the loss, and metrics that are divided by something else than the loss.
GRPO = GRPOConfig(
    name="grpo",
    aggregate="sequence_mean",
    dual_clip=1.5,
    entropy_coef=0.1,
    importance=ImportanceConfig(),
    minibatches=2,
)
LARGE = 10_000  # padded tokens: all rows fit one pass, and are split for the sake of the second rank

Result = tuple[dict[str, Tensor], dict[str, float]]  # gradients, metrics


def dpo_step(root: Path, world: World, budget: int) -> Result:
    learner = DPOLearner(model_config(root / "policy"), spec_of(budget), DPOConfig(name="dpo"), world)
    data = pairs(7, seed=1)
    rng = np.random.default_rng(0)
    learner.set_data(data, (rng.normal(-20, 3, 7).astype(np.float32), rng.normal(-20, 3, 7).astype(np.float32)))
    trap = GradientTrap(learner)
    metrics = learner.update_rows(np.arange(7))
    return trap.steps[0], metrics


def orpo_step(root: Path, world: World, budget: int) -> Result:
    learner = ORPOLearner(model_config(root / "policy"), spec_of(budget), ORPOConfig(name="orpo"), world)
    learner.set_data(pairs(7, seed=1))
    trap = GradientTrap(learner)
    metrics = learner.update_rows(np.arange(7))
    return trap.steps[0], metrics


def kto_step(root: Path, world: World, budget: int) -> Result:
    learner = KTOLearner(model_config(root / "policy"), spec_of(budget), KTOConfig(name="kto"), world)
    rng = np.random.default_rng(0)  # the mismatched so low that the reference point is above 0
    reference = rng.normal(-20, 3, 7).astype(np.float32), rng.normal(-40, 3, 7).astype(np.float32)
    learner.set_data(labelled(7, seed=1), reference)
    trap = GradientTrap(learner)
    metrics = learner.update_rows(np.arange(7))
    return trap.steps[0], metrics


def policy_update(root: Path, world: World, budget: int) -> Result:
    # A rate so small that the second minibatch meets the first one's weights: its gradient is then compared exactly.
    spec = spec_of(budget, learning_rate=1e-9)
    learner = PolicyGradientLearner(model_config(root / "policy"), spec, PPO, SamplingConfig(temperature=0.7), world)
    trap = GradientTrap(learner)
    metrics = learner.update(experience(9, seed=2))
    return {f"{i}/{name}": g for i, step in enumerate(trap.steps) for name, g in step.items()}, metrics


def critic_update(root: Path, world: World, budget: int) -> Result:
    learner = CriticLearner(model_config(root / "critic"), spec_of(budget, learning_rate=1e-9), PPO, world)
    trap = GradientTrap(learner)
    metrics = learner.update(experience(9, seed=3))
    return {f"{i}/{name}": g for i, step in enumerate(trap.steps) for name, g in step.items()}, metrics


def grpo_update(root: Path, world: World, budget: int) -> Result:
    spec = spec_of(budget, learning_rate=1e-9)
    learner = PolicyGradientLearner(model_config(root / "policy"), spec, GRPO, SamplingConfig(temperature=0.7), world)
    data, rng = experience(9, seed=2), np.random.default_rng(0)
    shape, mask = data.tokens.shape, data.completion_mask
    ref = np.where(mask, data.old_logprobs + rng.normal(0, 0.5, shape), 0).astype(np.float32)
    importance = np.where(mask, rng.uniform(0, 2, shape), 0).astype(np.float32)
    trap = GradientTrap(learner)
    metrics = learner.update(replace(data, ref_logprobs=ref, importance=importance, kl_coef=0.3))
    return {f"{i}/{name}": g for i, step in enumerate(trap.steps) for name, g in step.items()}, metrics


def online_dpo_update(root: Path, world: World, budget: int) -> Result:
    spec, algorithm = spec_of(budget, learning_rate=1e-9), OnlineDPOConfig(name="online_dpo", minibatches=2)
    learner = OnlineDPOLearner(model_config(root / "policy"), spec, algorithm, SamplingConfig(temperature=1.0), world)
    rows, rng = experience(14, seed=4), np.random.default_rng(0)
    ref = (-4.5 * rows.completion_mask.sum(1) + rng.normal(0, 3, 14)).astype(np.float32)
    probability = rng.uniform(0.5, 1, 7).astype(np.float32)
    trap = GradientTrap(learner)
    metrics = learner.update(PairExperience(rows.tokens, rows.lengths, rows.completion_mask, ref, probability))
    return {f"{i}/{name}": g for i, step in enumerate(trap.steps) for name, g in step.items()}, metrics


CASES = {
    "dpo": dpo_step,
    "orpo": orpo_step,
    "kto": kto_step,
    "ppo_policy": policy_update,
    "ppo_critic": critic_update,
    "grpo": grpo_update,
    "online_dpo": online_dpo_update,
}
BUDGETS = {"shared": 30, "all rows in one pass": LARGE}


def rank_main(rank: int, address: str, root: str) -> None:
    """One rank: every case, results on disk."""
    torch.set_num_threads(1)
    world = World(rank, 2, address, timeout=DEADLINE / 2)
    for case, step in CASES.items():
        for place, budget in BUDGETS.items():
            gradients, metrics = step(Path(root), world, budget)
            numbers = {f"metric {name}": torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
            save_file({**gradients, **numbers}, Path(root) / f"{case}-{place}-{rank}.safetensors")
    world.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Models, and what two ranks made of them."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    save_tiny(root / "policy", Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True)
    save_tiny(root / "critic", LlamaForSequenceClassification, LlamaConfig, num_labels=1)
    run_ranks(rank_main, 2, host_meeting("127.0.0.1"), str(root), deadline=DEADLINE)
    return root


@pytest.mark.parametrize("place", BUDGETS)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_take_the_step_of_one(root, case, place):
    expected, metrics = CASES[case](root, World(), 30)
    norm = next(value for name, value in metrics.items() if name.endswith("optimizer/grad_norm"))
    for rank in (0, 1):
        found = load_file(root / f"{case}-{place}-{rank}.safetensors")
        numbers = {n.removeprefix("metric "): found.pop(n).item() for n in list(found) if n.startswith("metric ")}
        assert_same(found, expected, 1e-6 * max(1.0, norm))
        assert numbers.keys() == metrics.keys()
        for name, value in metrics.items():
            assert numbers[name] == pytest.approx(value, rel=2e-6, abs=2e-6), name


def test_ranks_agree_bit_by_bit(root):
    for case in CASES:
        one, two = (load_file(root / f"{case}-shared-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_half_of_the_work_is_another_gradient(root):
    """Negative control: a rank that summed nothing would hold the gradient of its own micro-batches only."""
    (expected, _), half = dpo_step(root, World(), 30), World()
    half.rank, half.size = 0, 2
    half.sum_gradients = lambda parameters: None
    half.sum_metrics = lambda metrics, ranks=ALONE: metrics
    found, _ = dpo_step(root, half, 30)
    assert max((found[name] - expected[name]).abs().max().item() for name in expected) > 1e-2


def test_a_meeting_place_keeps_its_port():
    host, _, port = host_meeting("127.0.0.1").rpartition(":")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((host, int(port)))


def fails_alone(rank: int) -> None:
    if rank == 1:
        sys.exit(3)
    time.sleep(100)


def test_the_rank_that_fails_ends_the_others_at_once():
    """Negative control of `run_ranks`, which every test of several ranks leans on."""
    started = time.monotonic()
    with pytest.raises(AssertionError, match="3"):
        run_ranks(fails_alone, 2, deadline=90.0)
    assert time.monotonic() - started < 60
    assert not multiprocessing.active_children()
