"""Ranks that hold a model between them (FSDP2, HSDP, tensor parallelism) take the steps of one process."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from raylign.config import (
    DPOConfig,
    ModelConfig,
    PPOConfig,
    RewardModelConfig,
    SamplingConfig,
    SFTConfig,
    ShardingConfig,
)
from raylign.errors import UserError
from raylign.learners.critic import CriticLearner
from raylign.learners.learner import Learner
from raylign.learners.policy_gradient import PolicyGradientLearner
from raylign.learners.preference import DPOLearner
from raylign.learners.reward_model import RewardModelLearner
from raylign.learners.sft import SFTLearner
from raylign.learners.spec import LearnerSpec
from raylign.learners.world import World, host_meeting
from raylign.models.ranks import Ranks
from raylign.models.shard import whole
from raylign.types import RolloutBatch
from tests.unit.ranks import run_ranks
from tests.unit.tiny import (
    assert_same,
    experience,
    model_config,
    pairs,
    ref_logprobs,
    save_tiny,
    sequences,
    spec_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

DEADLINE = 280.0  # seconds for all ranks together, on a machine that does other things too
STEPS = 4
TOLERANCE = 1e-5
PPO = PPOConfig(name="ppo", minibatches=2)
SFT = SFTConfig(name="sft")

WHOLE = ShardingConfig()
FSDP = ShardingConfig(strategy="fsdp")
HSDP = ShardingConfig(strategy="fsdp", shard_size=2)
OFFLOAD = ShardingConfig(strategy="fsdp", cpu_offload=True)
TENSOR = ShardingConfig(tensor_parallel=2)
BOTH = ShardingConfig(strategy="fsdp", tensor_parallel=2)

Numbers = dict[str, Tensor]  # what a rank found: final weights, `score/...`, `metric/...`


def spec(sharding: ShardingConfig) -> LearnerSpec:
    # An eps at which Adam does not blow up the rounding of gradients that are almost 0.
    options = {"weight_decay": 0.1, "warmup_ratio": 0.1, "schedule": "cosine", "eps": 1e-4}
    return replace(spec_of(30, max_grad_norm=0.5, **options), sharding=sharding)


def rollouts() -> RolloutBatch:
    e = experience(9, seed=9)
    return RolloutBatch(
        tokens=e.tokens,
        prompt_lengths=e.completion_mask.argmax(1).astype(np.int32),
        completion_mask=e.completion_mask,
        logprobs=e.old_logprobs,
        prompt_rows=np.arange(9),
        finished=np.ones(9, np.bool_),
        policy_version=np.zeros(9, np.int64),
    )


class SFTCase:
    model = "tied"

    def build(self, config: ModelConfig, sharding: ShardingConfig, world: World | None) -> Any:
        learner = SFTLearner(config, spec(sharding), SFT, world)
        learner.set_data(sequences(12, seed=1))
        return learner

    def step(self, learner: Any, i: int) -> dict[str, float]:
        # One row in the second step: all ranks but one have nothing to do, and still have to make its pass.
        return learner.update_rows(np.array([11]) if i == 1 else np.arange(2 * i, 2 * i + 6))

    def scores(self, learner: Any) -> np.ndarray:
        b = rollouts()
        return learner.batch_logprobs(b.tokens, b.lengths, b.completion_mask, 1.0)


class ExpertsCase(SFTCase):
    model = "experts"


class DPOCase(SFTCase):
    model = "untied"

    def build(self, config: ModelConfig, sharding: ShardingConfig, world: World | None) -> Any:
        learner = DPOLearner(config, spec(sharding), DPOConfig(name="dpo"), world)
        learner.set_data(pairs(12, seed=1), ref_logprobs(12))
        return learner


class PolicyCase(SFTCase):
    def build(self, config: ModelConfig, sharding: ShardingConfig, world: World | None) -> Any:
        return PolicyGradientLearner(config, spec(sharding), PPO, SamplingConfig(temperature=0.7), world)

    def step(self, learner, i):
        return learner.update(experience(9, seed=i))

    def scores(self, learner):
        return learner.logprobs(rollouts())


class CriticCase(PolicyCase):
    model = "scalar"

    def build(self, config: ModelConfig, sharding: ShardingConfig, world: World | None) -> Any:
        return CriticLearner(config, spec(sharding), PPO, world)

    def scores(self, learner):
        return learner.values(rollouts())


class RewardModelCase(SFTCase):
    model = "headless"  # each start draws the head anew

    def build(self, config: ModelConfig, sharding: ShardingConfig, world: World | None) -> Any:
        learner = RewardModelLearner(config, spec(sharding), RewardModelConfig(name="reward_model"), world)
        learner.set_data(pairs(12, seed=1))
        return learner

    def scores(self, learner):
        return np.array([*learner.evaluate(pairs(7, seed=3)).values()], dtype=np.float32)


CASES = {
    "sft": SFTCase(),
    "experts": ExpertsCase(),
    "dpo": DPOCase(),
    "policy": PolicyCase(),
    "critic": CriticCase(),
    "reward_model": RewardModelCase(),
}
# Name: ranks, case, how the model is split, and what of the model's config is not as usual.
RUNS: dict[str, tuple[int, str, ShardingConfig, dict[str, bool]]] = {
    "4 sft, checkpointed activations": (4, "sft", FSDP, {"gradient_checkpointing": True}),
    "4 dpo": (4, "dpo", FSDP, {}),
    "4 policy": (4, "policy", FSDP, {}),
    "4 critic": (4, "critic", FSDP, {}),
    "4 reward_model": (4, "reward_model", FSDP, {}),
    "4 policy, 2 copies": (4, "policy", HSDP, {}),
    "4 dpo, tensor parallel": (4, "dpo", BOTH, {}),
    "4 sft, tensor parallel, 2 copies": (4, "sft", TENSOR, {}),
    "2 sft": (2, "sft", FSDP, {}),
    "2 dpo, offloaded": (2, "dpo", OFFLOAD, {}),
    "2 policy": (2, "policy", FSDP, {}),
    "2 critic": (2, "critic", FSDP, {}),
    "2 reward_model": (2, "reward_model", FSDP, {}),
    "2 experts": (2, "experts", FSDP, {}),
    "2 policy, tensor parallel": (2, "policy", TENSOR, {}),
    "2 dpo, tensor parallel": (2, "dpo", TENSOR, {}),  # its norms see the heads of one rank
}
# Name: from a checkpoint of step 2 at 4 ranks (or 1), how it is split there, to how many ranks, split how.
RESUMED: dict[str, tuple[str, ShardingConfig, int, ShardingConfig]] = {
    "4 to 2": ("policy-4", FSDP, 2, FSDP),
    "4 to 2 whole": ("policy-4", FSDP, 2, WHOLE),
    "4 to 2 tensor parallel": ("policy-4", FSDP, 2, TENSOR),
    "4 to 1": ("policy-4", FSDP, 1, WHOLE),
    "4 tensor parallel to 2": ("policy-4-tensor", BOTH, 2, FSDP),
    "1 to 2": ("policy-1", WHOLE, 2, FSDP),
}


def numbers(case: SFTCase, learner: Learner, steps: range) -> Numbers:
    """Take the steps; then what a single process would have: metrics of each step, scores, whole weights."""
    metrics = [case.step(learner, i) for i in steps]
    found = {f"score/{learner.role}": torch.from_numpy(np.array(case.scores(learner)))}
    found |= {
        f"metric/{i}/{name}": torch.tensor(value, dtype=torch.float64)
        for i, step in enumerate(metrics)
        for name, value in step.items()
    }
    return found | {
        name: whole(tensor).clone()
        for name, tensor in learner.model.state_dict().items()
        if name not in learner.model.all_tied_weights_keys
    }


def run(root: Path, name: str, world: World | None) -> Numbers:
    _, case, sharding, options = RUNS[name]
    config = model_config(root / CASES[case].model, **options)
    learner = CASES[case].build(config, sharding if world else WHOLE, world)
    if world:
        assert learner.collective
    return numbers(CASES[case], learner, range(STEPS))


def save_half(root: Path, name: str, sharding: ShardingConfig, world: World | None) -> None:
    """A checkpoint after half of the steps, and the weights as an engine would be sent them."""
    case = CASES["policy"]
    learner = case.build(model_config(root / case.model), sharding, world)
    for i in range(STEPS // 2):
        case.step(learner, i)
    learner.save(str(root / name))
    buckets = learner.weights("float32")
    if learner.world.rank == 0:
        save_file({n: torch.from_numpy(a) for b in buckets for n, a in b.items()}, root / f"{name}-sent.safetensors")


def resume(root: Path, name: str, world: World | None) -> Numbers:
    source, _, _, sharding = RESUMED[name]
    learner = CASES["policy"].build(model_config(root / source), sharding, world)
    learner.restore(str(root / source))
    return numbers(CASES["policy"], learner, range(STEPS // 2, STEPS))


def wrong_divisor(root: Path, world: World) -> Numbers:
    case = CASES["policy"]
    learner = case.build(model_config(root / case.model), FSDP, world)
    for module in learner.model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(2.0)
    return numbers(case, learner, range(1))


class Credulous(Ranks):
    """Takes what a rank without work repeats for work."""

    def share(self, groups):
        return [(group, True) for group, _ in super().share(groups)]


def counted_repeats(root: Path, world: World) -> Numbers:
    case = CASES["sft"]
    learner = case.build(model_config(root / case.model), FSDP, world)
    learner.ranks = Credulous(**vars(learner.ranks))
    return numbers(case, learner, range(2))


def refusals(root: Path, world: World) -> Numbers:
    """Four ranks cannot share two key-value heads."""
    with pytest.raises(UserError) as refused:
        CASES["sft"].build(model_config(root / "tied"), ShardingConfig(tensor_parallel=4), world)
    (root / f"refused-{world.rank}").write_text(str(refused.value))
    return {}


CONTROLS: dict[str, tuple[int, Callable[[Path, World], Numbers]]] = {
    "wrong divisor": (2, wrong_divisor),
    "counted repeats": (2, counted_repeats),
    "refusals": (4, refusals),
}


def rank_main(rank: int, addresses: dict[int, str], root: Path) -> None:
    """One of four ranks, of which two make the world of two afterwards; results on disk."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for size, address in addresses.items():
        if rank >= size:
            continue
        world = World(rank, size, address, timeout=DEADLINE / 2)
        found = {name: run(root, name, world) for name, (ranks, *_) in RUNS.items() if ranks == size}
        if size == 4:
            save_half(root, "policy-4", FSDP, world)
            save_half(root, "policy-4-tensor", BOTH, world)
        found |= {name: resume(root, name, world) for name, (_, _, to, _) in RESUMED.items() if to == size}
        found |= {name: control(root, world) for name, (ranks, control) in CONTROLS.items() if ranks == size}
        for name, result in found.items():
            save_file({n: t.contiguous() for n, t in result.items()}, root / f"{name}-{rank}.safetensors")
        world.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Models, and what four and two ranks made of them."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("split")
    save_tiny(root / "tied", Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True)
    save_tiny(root / "untied", Qwen3ForCausalLM, Qwen3Config, tie_word_embeddings=False, head_dim=8)
    save_tiny(root / "experts", MixtralForCausalLM, MixtralConfig, num_local_experts=4, num_experts_per_tok=2)
    save_tiny(root / "scalar", LlamaForSequenceClassification, LlamaConfig, num_labels=1)
    save_tiny(root / "headless", Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True, seed=3)
    save_half(root, "policy-1", WHOLE, None)
    run_ranks(rank_main, 4, {size: host_meeting("127.0.0.1") for size in (4, 2)}, root, deadline=DEADLINE)
    return root


def found_by(root: Path, name: str, rank: int) -> Numbers:
    return load_file(root / f"{name}-{rank}.safetensors")


def assert_as_one(found: Numbers, expected: Numbers) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = TOLERANCE * max(1.0, float(value.abs().max())) if name.startswith("metric/") else TOLERANCE
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", RUNS)
def test_ranks_that_split_a_model_take_the_steps_of_one_process(root, name):
    expected = run(root, name, None)
    for rank in range(RUNS[name][0]):
        assert_as_one(found_by(root, name, rank), expected)


@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_goes_on_at_another_number_of_ranks(root, name):
    case = CASES["policy"]
    learner = case.build(model_config(root / case.model), WHOLE, None)
    for i in range(STEPS // 2):
        case.step(learner, i)
    expected = numbers(case, learner, range(STEPS // 2, STEPS))
    ranks = RESUMED[name][2]
    for rank in range(ranks):
        assert_as_one(found_by(root, name, rank) if ranks > 1 else resume(root, name, None), expected)


@pytest.mark.parametrize("name", ["policy-4", "policy-4-tensor"])
def test_a_split_learner_saves_the_folder_of_a_whole_one_and_sends_its_weights(root, name):
    one, found = load_file(root / "policy-1" / "model.safetensors"), load_file(root / name / "model.safetensors")
    assert_same(found, one, TOLERANCE)
    sent = load_file(root / f"{name}-sent.safetensors")
    assert sent.keys() == found.keys()
    assert all(torch.equal(sent[n], t) for n, t in found.items())
    assert json.loads((root / name / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    suffixes = {file.suffix for file in (root / name).rglob("*") if file.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja"}  # no pickle


def test_a_wrong_divisor_of_gradients_shows(root):
    """Negative control: gradients are sums over the ranks, so half of them is half the norm."""
    norm = "metric/0/policy/optimizer/grad_norm"
    right = float(run(root, "2 policy", None)[norm])
    assert float(found_by(root, "wrong divisor", 0)[norm]) == pytest.approx(right / 2, rel=1e-4)


def test_a_repeated_micro_batch_that_counted_would_show(root):
    """Negative control: the step on one row is one in which a rank repeats a micro-batch."""
    loss = "metric/1/loss"
    right = float(run(root, "2 sft", None)[loss])
    assert float(found_by(root, "counted repeats", 0)[loss]) == pytest.approx(2 * right, rel=1e-3)


def test_heads_that_do_not_divide_are_refused_by_name(root):
    for rank in range(4):
        message = (root / f"refused-{rank}").read_text()
        assert message.startswith("learner.sharding.tensor_parallel: 4 ranks cannot share num_key_value_heads 2")


@pytest.mark.parametrize("num_groups", [1, 3, 4, 5, 9])
def test_all_ranks_make_the_same_number_of_passes(num_groups, monkeypatch):
    shares = [Ranks(rank, 4).share(range(num_groups)) for rank in range(4)]
    assert sorted(g for share in shares for g, _ in share) == list(range(num_groups))
    if num_groups % 4:  # negative control: as they come, the shares are not equal
        assert len({len(share) for share in shares}) > 1
    monkeypatch.setattr(Ranks, "collective", True)
    shares = [Ranks(rank, 4).share(range(num_groups)) for rank in range(4)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(g for share in shares for g, counts in share if counts) == list(range(num_groups))


def test_more_ranks_than_were_saved_draw_their_own_numbers_and_share_the_order(root):
    """A learner with a copy on every rank goes on with more of them."""
    drawn = []
    for rank in (0, 1, 2):
        learner = CASES["policy"].build(model_config(root / "policy-1"), WHOLE, None)
        learner.ranks = Ranks(rank, 3)
        for _ in range(2):
            torch.manual_seed(99 + rank)
            learner.restore(str(root / "policy-1"))
            drawn.append((torch.rand(3).tolist(), torch.rand(3, generator=learner.shuffle).tolist()))
    (a, a_again), (b, b_again), (c, c_again) = drawn[:2], drawn[2:4], drawn[4:]
    assert (a, b, c) == (a_again, b_again, c_again)  # repeatable
    assert len({tuple(torch_numbers) for torch_numbers, _ in (a, b, c)}) == 3
    assert a[1] == b[1] == c[1]
