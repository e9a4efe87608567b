"""The arithmetic of `raylign plan`: traced sizes against real models, splits, shards, fit, placement, cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from raylign.actors.fleet import RolloutFleet
from raylign.actors.role_groups import PolicyGroup, RewardGroup
from raylign.cli import app
from raylign.cluster.spec import parse_spec
from raylign.config import ModelConfig, RunConfig
from raylign.controllers.roles import Roles
from raylign.controllers.sampling import Sampling, Shard
from raylign.errors import UserError
from raylign.planning import devices
from raylign.planning.fit import demands
from raylign.planning.lengths import LengthProfile
from raylign.planning.memory import MemoryModel
from raylign.planning.parts import MIB
from raylign.planning.plan import plan
from raylign.planning.trace import Shape, Skeleton
from raylign.types import LongArray
from tests.unit.tiny import tiny_tokenizer

WIDE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "bos_token_id": None,
}


def described(folder: Path, **options: Any) -> str:
    """Write a model folder without weights, which plan does not need."""
    Qwen2Config(**{**WIDE, **options}).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": " w3" * 16, "chosen": " w4" * 8, "rejected": " w5"}) + "\n" for _ in range(8))
    )
    return str(file)


def ppo(model: str, data: str, **sections: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "name": "planned",
        "model": {"path": model, "compute_dtype": "bfloat16"},
        "data": {"path": data},
        "reward": {"type": "function", "function": "math:fsum", "allow_code": True},
        "rollout": {"sampling": {"max_tokens": 16}, "engine": "vllm"},
        "algorithm": {"name": "ppo", "steps": 10, "prompts_per_step": 8},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return RunConfig.model_validate(tree)


def on_gpus(*roles: str) -> dict[str, Any]:
    return {role: {"num_gpus": 1, "num_cpus": 1} for role in roles}


GPU_ROLES = on_gpus("policy", "critic", "reference", "rollout")


def saved_bytes(folder: str, shape: Shape) -> int:
    """Return the bytes that autograd really keeps of the model's body, without weights, each storage once."""
    config = Qwen2Config.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config).eval()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model.base_model(input_ids=torch.zeros(shape.rows, shape.length, dtype=torch.long), use_cache=False)
    assert out.last_hidden_state.requires_grad
    return sum(seen.values())


def test_traced_activations_are_what_autograd_keeps(tmp_path):
    folder, shape = described(tmp_path / "m"), Shape(4, 128, 64)
    traced = Skeleton(ModelConfig(path=folder, compute_dtype="float32")).training(
        shape, entropy=False, accumulates=True
    )
    assert traced.body == pytest.approx(saved_bytes(folder, shape), rel=0.05)
    # logits of 64 tokens x 64 words, softmax and gradient: little beside the layers, but there
    assert traced.peak > traced.body


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_are_those_of_the_real_model(tmp_path, tied):
    folder = described(tmp_path / "m", tie_word_embeddings=tied)
    sizes = Skeleton(ModelConfig(path=folder)).sizes
    real = AutoModelForCausalLM.from_config(Qwen2Config.from_pretrained(folder))
    assert sizes.num_parameters == sum(p.numel() for p in real.parameters())
    assert sizes.weights == sizes.gradients == 4 * sizes.num_parameters
    assert sizes.num_body == sizes.num_parameters - (1 if tied else 2) * 64 * 64
    assert sizes.kv_elements == 2 * 3 * 2 * 16  # keys and values, layers, heads, width


def test_an_architecture_of_other_names(tmp_path):
    GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=64, n_positions=128).save_pretrained(tmp_path)
    skeleton = Skeleton(ModelConfig(path=str(tmp_path)), "value")
    assert skeleton.sizes.kv_elements == 2 * 2 * 64
    assert skeleton.training(Shape(2, 32, 16), entropy=False, accumulates=True).body > 0


def test_recomputing_saves_activations_and_adapters_save_gradients(tmp_path):
    folder, shape = described(tmp_path / "m"), Shape(4, 128, 64)
    plain = Skeleton(ModelConfig(path=folder))
    recomputed = Skeleton(ModelConfig(path=folder, gradient_checkpointing=True))
    kept, fewer = (s.training(shape, entropy=False, accumulates=True) for s in (plain, recomputed))
    assert fewer.body < kept.body / 3
    adapted = Skeleton(ModelConfig.model_validate({"path": folder, "lora": {"rank": 2}})).sizes
    matrices = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 160), (64, 160), (160, 64)]
    assert adapted.gradients == 4 * 3 * sum(2 * (rows + columns) for rows, columns in matrices)


def test_the_largest_pass_and_the_number_of_passes():
    profile = LengthProfile(np.array([10, 40, 20, 40]), np.array([5, 30, 10, 20]), 1, "here")
    assert profile.largest(80, 4) == Shape(2, 40, 50)
    assert profile.largest(80, 1) == Shape(1, 40, 30)
    assert profile.passes(80, 4) == 2
    pairs = LengthProfile(np.array([10, 40]), np.array([10, 60]), 2, "here")
    assert pairs.largest(80, 2) == Shape(2, 40, 60)
    assert pairs.largest(80, 2, rows_per_item=1) == Shape(2, 40, 35)


def test_ranks_split_weights_gradients_and_moments(tmp_path, prompts):
    folder = described(tmp_path / "m")

    def learning(**learner: Any) -> dict[str, int]:
        placement = {
            **GPU_ROLES,
            "policy": {"num_gpus": 1, "num_actors": 2},
            "critic": {"num_gpus": 1, "num_actors": 2},
        }
        config = ppo(folder, prompts, placement=placement, learner={"sharding": learner})
        profile = LengthProfile(np.full(8, 32), np.full(8, 16), 1, "here")
        policy = MemoryModel(config, profile, 10).role("policy")
        return {part.name: part.size for part in policy.states[-1].parts}

    whole, half = learning(), learning(strategy="fsdp")
    away = learning(strategy="fsdp", cpu_offload=True)
    for name in ("weights", "gradients", "optimizer"):
        assert half[name] == whole[name] // 2
        assert away[name] == 0
    assert whole["optimizer"] == 2 * whole["gradients"] == 2 * whole["weights"]
    assert "object store" not in whole  # the host's, not the GPU's


class ShardRecorder(Sampling):
    """Cuts steps into shards as a run does, without engines that sample them."""

    def _shards(self, parts: list[tuple[LongArray, int]], version: int, first: int) -> list[Shard]:
        return [Shard(rows, salt, {}, frozenset()) for rows, salt in parts]


@pytest.mark.parametrize(
    ("rollout", "num_engines", "largest"),
    [
        ({}, 2, 8),  # 16 prompts for 2 engines
        ({"shards_per_step": 8}, 2, 2),
        ({"elastic": {"max_engines": 8}}, 2, 2),  # the run cuts for the most engines that may come
        ({"elastic": {"max_engines": 6}, "shards_per_step": 3}, 1, 3),
    ],
)
def test_plan_cuts_a_step_into_the_shards_of_the_run(tmp_path, prompts, rollout, num_engines, largest):
    config = ppo(
        described(tmp_path / "m"),
        prompts,
        rollout=rollout,
        placement={"rollout": {"num_actors": num_engines}},
        algorithm={"prompts_per_step": 16, "samples_per_prompt": 4},
    )
    algorithm: Any = config.algorithm
    nothing: Any = None  # placement, prompts and turns, which only sampling itself uses
    roles = Roles(
        nothing,
        policy=PolicyGroup("policy", config.role_resources("policy"), [], 1),
        reward=RewardGroup("reward", config.role_resources("reward"), [], 1),
        rollout=RolloutFleet("rollout", config.role_resources("rollout"), [], 1, config.rollout),
    )
    run = ShardRecorder(config, roles, algorithm, nothing, nothing)
    shards = run.submit(0, [np.arange(16)], 0).shards
    planned = MemoryModel(config, LengthProfile(np.full(8, 32), np.full(8, 16), 1, "here"), 10)
    assert planned.shard_rows == 4 * max(len(shard.rows) for shard in shards) == 4 * largest


def test_what_fits_and_what_would(tmp_path, prompts):
    big = described(
        tmp_path / "m", hidden_size=4096, intermediate_size=11008, num_hidden_layers=2, num_attention_heads=32
    )
    small = ppo(described(tmp_path / "s"), prompts, placement=GPU_ROLES)
    assert plan(small, devices.gpu("h100-80gb")).fits
    config = ppo(big, prompts, placement=GPU_ROLES)
    planned = plan(config, devices.gpu("6gib"))
    assert not planned.fits
    assert planned.fits_after_changes
    needed = [planned.demands[0].needed, *(change.demand.needed for change in planned.changes)]
    assert planned.changes[-1].demand.fits
    assert not any(change.demand.fits for change in planned.changes[:-1])
    assert needed == sorted(needed, reverse=True)
    # The plan of the changed config is what the changes promise.
    settings = {s.split("=")[0]: s.split("=")[1] for change in planned.changes for s in change.settings}
    tree = config.model_dump()
    for place, value in settings.items():
        *sections, last = place.split(".")
        at = tree
        for section in sections:
            at[section] = at[section] or {}
            at = at[section]
        at[last] = value
    if "placement.policy.num_actors" in settings:
        tree["placement"]["critic"]["num_actors"] = settings["placement.policy.num_actors"]
    again = plan(RunConfig.model_validate(tree), devices.gpu("6gib"))
    assert again.fits
    assert again.demands[0].needed == needed[-1]


def test_colocated_roles_take_turns(tmp_path, prompts):
    folder, device = described(tmp_path / "m"), devices.gpu("h100-80gb")
    profile = LengthProfile(np.full(8, 32), np.full(8, 16), 1, "here")
    apart = demands(MemoryModel(ppo(folder, prompts, placement=GPU_ROLES), profile, 10), device)
    assert {d.roles for d in apart} == {("policy",), ("critic",), ("rollout",), ("reference",)}
    shared = ppo(folder, prompts, placement={**GPU_ROLES, "mode": "colocated"})
    (together,) = demands(MemoryModel(shared, profile, 10), device)
    engine = int(0.85 * device.memory)
    reference = MemoryModel(shared, profile, 10).role("reference").peak
    assert together.needed == engine + reference


def test_cost_by_hand(tmp_path, prompts):
    config = ppo(described(tmp_path / "m"), prompts, placement=GPU_ROLES)
    planned = plan(config, devices.gpu("h100-80gb"), runs=4, price_per_gpu_hour=2.5)
    sizes = Skeleton(config.model).sizes
    learn = next(work for work in planned.cost.works if work.role == "policy" and work.how.startswith("learn"))
    tokens = 8 * 32
    operations = 6 * (tokens * (sizes.num_body + 3 * 64 * 32) + 8 * 16 * sizes.num_head)
    assert learn.seconds == pytest.approx(operations / (0.40 * 989e12))
    assert planned.cost.num_gpus == 4
    assert planned.cost.gpu_hours == pytest.approx(4 * 4 * (90 + 10 * planned.cost.step_seconds) / 3600)
    assert planned.cost.money == pytest.approx(2.5 * planned.cost.gpu_hours)


def test_data_that_is_not_here_is_taken_from_the_limits(tmp_path):
    folder = described(tmp_path / "m")
    tree = {"name": "far", "model": {"path": folder}, "algorithm": {"name": "dpo"}}
    far = RunConfig.model_validate({**tree, "data": {"path": "someone/pairs", "max_tokens": 200}})
    device = devices.Device("a machine", 2**35, 1e12, 1e11, 2e10, is_gpu=False)
    with pytest.raises(UserError, match=r"^data\.path: someone/pairs is not on this machine.*--rows$"):
        plan(far, device)
    planned = plan(far, device, num_rows=640)
    assert planned.cost.steps == 10
    assert planned.resolved.profile.lengths.max() == 200


def test_stages_that_were_not_run_are_planned_and_leave_nothing(tmp_path, prompts):
    folder, runs = described(tmp_path / "m"), tmp_path / "runs"
    head = f"name: {{}}\noutput_dir: {runs}\nmodel: {{{{path: {{}}}}}}\ndata: {{{{path: {{}}}}}}\n"
    (tmp_path / "sft.yaml").write_text(head.format("sft", folder, "not/here") + "algorithm: {name: sft}\n")
    (tmp_path / "pairs.yaml").write_text(
        head.format("pairs", f"run:{tmp_path}/sft.yaml", prompts)
        + "reward: {type: function, function: 'math:fsum', allow_code: true}\n"
        + "rollout: {sampling: {max_tokens: 24}}\nalgorithm: {name: collect, rows: 32}\n"
    )
    tree = {
        "name": "dpo",
        "output_dir": str(runs),
        "model": {"path": f"run:{tmp_path}/sft.yaml"},
        "data": {"path": f"run:{tmp_path}/pairs.yaml"},
        "algorithm": {"name": "dpo", "batch_size": 8},
    }
    device = devices.Device("a machine", 2**35, 1e12, 1e11, 2e10, is_gpu=False)
    planned = plan(RunConfig.model_validate(tree), device)
    assert planned.cost.steps == 4
    assert set(planned.resolved.profile.lengths) == {16 + 24}
    assert set(planned.memory) == {"policy", "reference"}
    assert not runs.exists()


@pytest.mark.parametrize(
    ("name", "gib"), [("h100", 80), ("A100-40gb", 40), ("48gib", 48), ("48", None), (str(40 * 2**30), 40)]
)
def test_gpu_names(name, gib):
    if gib is None:
        assert devices.gpu(name).memory == 48  # bytes
    else:
        assert devices.gpu(name).memory == gib * 2**30


@pytest.mark.parametrize("name", ["h900", "a100", "", "-3gib", "0"])
def test_other_gpu_names_are_refused(name):
    with pytest.raises(UserError, match=r"^--gpu: .*h100-80gb"):
        devices.gpu(name)


def test_a_cluster_names_its_gpu():
    tree = {"name": "c", "head": {"num_cpus": 8, "num_gpus": 8, "memory_gib": 500, "machine": {"gpu": "H100"}}}
    assert devices.of_cluster(parse_spec(tree)).name == "h100-80gb"
    tree["head"]["machine"] = {}
    with pytest.raises(UserError, match=r"machine\.gpu"):
        devices.of_cluster(parse_spec(tree))


def test_gpus_on_one_side_only_are_refused(tmp_path, prompts):
    folder = described(tmp_path / "m")
    with pytest.raises(UserError, match=r"^placement: no role has a GPU"):
        plan(ppo(folder, prompts), devices.gpu("h100"))
    machine = devices.Device("a machine", 2**35, 1e12, 1e11, 2e10, is_gpu=False)
    with pytest.raises(UserError, match=r"^placement: roles have num_gpus"):
        plan(ppo(folder, prompts, placement=GPU_ROLES), machine)


def test_the_command(tmp_path, prompts):
    from typer.testing import CliRunner

    file, out = tmp_path / "ppo.yaml", tmp_path / "plan.json"
    config = ppo(described(tmp_path / "m"), prompts, placement=GPU_ROLES)
    file.write_text(config.model_dump_json())
    args = ["plan", str(file), "--gpu", "h100", "--explain", "--json", str(out), "--price-per-gpu-hour", "2"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.output.splitlines() if "MiB" not in line and " s  " not in line) <= 100
    tree = json.loads(out.read_text())
    assert tree["fits"]
    assert tree["money"] == pytest.approx(2 * tree["gpu_hours"])
    policy = tree["memory"]["policy"]
    state = max(policy["states"].values(), key=lambda state: state["total"])
    assert policy["peak_bytes"] == state["total"] == sum(v for k, v in state.items() if k != "total")
    assert [list(stage["seats"]) for stage in tree["placement"]] == [list(phase) for phase in config.phases]


def test_the_peak_of_a_process_is_read_and_taken_back():
    program = """
from raylign.actors.peak import peak_memory, reset_peak
first = peak_memory()["host"]
block = bytearray(200 * 2**20)
block[::4096] = b"x" * len(block[::4096])
high = peak_memory()["host"]
del block
still = peak_memory()["host"]
reset_peak()
print(high - first, still - first, peak_memory()["host"] - first)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    high, still, after = map(int, done.stdout.split())
    assert high == pytest.approx(200 * MIB, rel=0.1)
    assert still == pytest.approx(high, rel=0.05)
    assert after < 50 * MIB
