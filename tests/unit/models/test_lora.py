"""Adapters: they start as the identity, they alone learn, they come back bit by bit, and merged they are the same model."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import raylign.models.merge as merge_module
from raylign.config import (
    DPOConfig,
    LoRAConfig,
    PPOConfig,
    RewardModelConfig,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    ShardingConfig,
)
from raylign.errors import UserError
from raylign.learners.critic import CriticLearner
from raylign.learners.learner import Learner
from raylign.learners.policy_gradient import PolicyGradientLearner
from raylign.learners.preference import DPOLearner
from raylign.learners.reference import ReferenceModel
from raylign.learners.reward_model import RewardModelLearner
from raylign.learners.sft import SFTLearner
from raylign.learners.world import World, host_meeting
from raylign.models.load import export_weights, load_causal, load_critic
from raylign.models.lora import adapter_parameters, adapter_state, save_adapter
from raylign.models.merge import save_merged
from raylign.rollout import RolloutWorker
from raylign.types import PromptSet, Ragged
from tests.unit.ranks import run_ranks
from tests.unit.tiny import (
    assert_same,
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
    tiny_tokenizer,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = LoRAConfig(rank=4, alpha=8.0)
PPO = PPOConfig(name="ppo", minibatches=2, epochs=1)
IDS = torch.arange(2, 14)[None]
KINDS = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "gpt2": GPT2LMHeadModel}
BITSANDBYTES = find_spec("bitsandbytes") is not None


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return {
        "llama": save_tiny(root / "llama", LlamaForCausalLM, LlamaConfig),
        "qwen2": save_tiny(root / "qwen2", Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True),
        "gpt2": save_tiny(root / "gpt2", GPT2LMHeadModel, GPT2Config, **gpt2),
        "reward": save_tiny(root / "reward", LlamaForSequenceClassification, LlamaConfig, num_labels=1),
    }


def adapted(folder: Path, scale: float = 0.1, **lora):
    """A model whose adapter is no longer the identity."""
    model = load_causal(model_config(folder, lora=LORA.model_copy(update=lora)), seed=1)
    torch.manual_seed(5)
    for parameter in adapter_parameters(model).values():
        parameter.data.normal_(0, scale)
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


def learner_of(kind: str, folders: dict[str, Path], lora: LoRAConfig | None = LORA, **options) -> Learner:
    config = model_config(folders["llama"], lora=lora, **options)
    match kind:
        case "dpo":
            learner = DPOLearner(config, spec_of(40), DPOConfig(name="dpo"))
            learner.set_data(pairs(), ref_logprobs(6))
        case "sft":
            learner = SFTLearner(config, spec_of(40), SFTConfig(name="sft"))
            learner.set_data(sequences())
        case "reward_model":
            learner = RewardModelLearner(config, spec_of(40), RewardModelConfig(name="reward_model"))
            learner.set_data(pairs())
        case "ppo":
            learner = PolicyGradientLearner(config, spec_of(40), PPO, SamplingConfig(temperature=0.7))
        case _:
            learner = CriticLearner(config, spec_of(40), PPO)
    return learner


def step(learner: Learner, i: int) -> dict[str, float]:
    if isinstance(learner, PolicyGradientLearner | CriticLearner):
        return learner.update(experience(5, seed=i))
    assert isinstance(learner, DPOLearner | SFTLearner | RewardModelLearner)
    return learner.update_rows(np.array([i % 6, (i + 1) % 6]))


ROLES = ["sft", "dpo", "ppo", "critic", "reward_model"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_is_the_same_on_every_rank(kind, folders):
    config = model_config(folders[kind], lora=LORA)
    one, other, another = (load_causal(config, seed=s) for s in (3, 3, 4))
    assert torch.equal(logits(one), logits(plain(KINDS[kind], folders[kind])))
    state = adapter_state(one)
    assert not differs(state, adapter_state(other))
    assert differs(state, adapter_state(another))
    assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in state)


@pytest.mark.parametrize("role", ROLES)
def test_only_the_adapter_and_the_score_head_learn(role, folders):
    learner = learner_of(role, folders)
    before = weights_of(learner)
    for i in range(2):  # in the first step the gradient of A is zero, because B is
        step(learner, i)
    moved = {name for name, value in weights_of(learner).items() if not torch.equal(value, before[name])}
    learns = {name for name in before if "lora_" in name or name.startswith("score.")}
    assert moved == learns == set(learner.named)
    held = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in learner.named.values()}
    assert any(name.startswith("score.") for name in learns) == (role in ("critic", "reward_model"))


@pytest.mark.parametrize("role", ROLES)
def test_three_steps_and_three_more_are_six_steps(role, folders, tmp_path):
    whole = learner_of(role, folders, LORA.model_copy(update={"dropout": 0.2}))
    metrics = [step(whole, i) for i in range(6)]
    first = learner_of(role, folders, LORA.model_copy(update={"dropout": 0.2}))
    for i in range(3):
        step(first, i)
    first.save(str(tmp_path))
    torch.manual_seed(99)
    second = learner_of(role, folders, LORA.model_copy(update={"dropout": 0.2}))
    second.restore(str(tmp_path))
    assert not differs(weights_of(first), weights_of(second))
    assert [step(second, i) for i in range(3, 6)] == metrics[3:]
    assert not differs(weights_of(whole), weights_of(second))


def test_a_commit_holds_the_adapter_alone_and_peft_reads_it(folders, tmp_path):
    learner = learner_of("dpo", folders)
    for i in range(3):
        step(learner, i)
    learner.save(str(tmp_path))
    assert not (tmp_path / "model.safetensors").exists()
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == adapter_state(learner.model).keys()
    base = json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(folders["llama"])
    theirs = PeftModel.from_pretrained(plain(LlamaForCausalLM, folders["llama"]), str(tmp_path)).eval()
    assert torch.equal(logits(learner.model), logits(theirs))
    assert not torch.equal(logits(learner.model), logits(plain(LlamaForCausalLM, folders["llama"])))


def test_peft_reads_the_score_head_too(folders, tmp_path):
    learner = learner_of("reward_model", folders)
    step(learner, 0)
    learner.save(str(tmp_path))
    base = LlamaForSequenceClassification.from_pretrained(folders["llama"], num_labels=1, dtype=torch.float32)
    base.config.pad_token_id = None  # one row at a time: nothing is padding
    theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    learner.model.config.pad_token_id = None
    assert torch.equal(logits(learner.model), logits(theirs))


def test_an_adapter_of_another_config_is_refused(folders, tmp_path):
    learner_of("sft", folders).save(str(tmp_path))
    other = learner_of("sft", folders, LoRAConfig(rank=2))
    with pytest.raises(UserError, match=r"adapter has other layers or another rank than model\.lora") as caught:
        other.restore(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_adapted_one_and_training_is_untouched(kind, folders, tmp_path):
    model = adapted(folders[kind])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_merged(model, tiny_tokenizer(), tmp_path)
    assert not differs(before, model.state_dict())
    merged = plain(KINDS[kind], tmp_path)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=0)
    assert (logits(plain(KINDS[kind], folders[kind])) - logits(model)).abs().max() > 0.1
    assert {f.name for f in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    named, base = load_file(tmp_path / "model.safetensors"), load_file(folders[kind] / "model.safetensors")
    assert {n: t.shape for n, t in named.items()} == {n: t.shape for n, t in base.items()}


def test_an_unscaled_merge_differs(folders, tmp_path, monkeypatch):
    """Negative control: with alpha / rank left out the test above would fail."""
    delta = merge_module._delta
    monkeypatch.setattr(merge_module, "_delta", lambda layer: delta(layer) / layer.scaling["default"])
    model = adapted(folders["llama"])
    save_merged(model, tiny_tokenizer(), tmp_path)
    assert (logits(plain(LlamaForCausalLM, tmp_path)) - logits(model)).abs().max() > 0.1


def test_a_merged_reward_model_scores_the_same(folders, tmp_path):
    learner = learner_of("reward_model", folders)
    for i in range(3):
        step(learner, i)
    learner.export_merged(str(tmp_path))
    merged = plain(LlamaForSequenceClassification, tmp_path)
    learner.model.config.pad_token_id = None
    torch.testing.assert_close(logits(merged), logits(learner.model), atol=1e-4, rtol=0)


def test_engines_are_sent_the_adapter_and_nothing_else(folders):
    learner = learner_of("dpo", folders)
    step(learner, 0)
    (bucket,) = learner.weights("float32")  # pyright: ignore[reportAttributeAccessIssue]
    state = adapter_state(learner.model)
    assert bucket.keys() == state.keys()
    assert sum(array.nbytes for array in bucket.values()) == sum(4 * tensor.numel() for tensor in state.values())
    halves = export_weights(learner.model, torch.bfloat16)
    assert {array.dtype for array in halves.values()} == {np.dtype(np.uint16)}


def test_targets_are_linear_layers_below_the_head(folders):
    model = load_causal(model_config(folders["llama"], lora=LoRAConfig(rank=2, targets=("q_proj", "v_proj"))))
    assert {name.split(".")[-3] for name in adapter_parameters(model)} == {"q_proj", "v_proj"}
    for target in ("lm_head", "embed_tokens", "query"):
        with pytest.raises(
            UserError, match=rf"model\.lora\.targets: {target} is not a linear layer .*q_proj"
        ) as caught:
            load_causal(model_config(folders["llama"], lora=LoRAConfig(targets=(target,))))
        assert "\n" not in str(caught.value)


def test_adapters_are_fp32_over_bfloat16_weights(folders):
    model = load_critic(model_config(folders["reward"], lora=LORA, weights_dtype="bfloat16"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_the_reference_is_the_start_without_an_adapter(folders):
    reference = ReferenceModel(model_config(folders["llama"], lora=LORA), 4096)
    assert adapter_parameters(reference.model) == {}
    assert torch.equal(logits(reference.model), logits(plain(LlamaForCausalLM, folders["llama"])))


PROMPTS = PromptSet(Ragged.from_rows([[2, 3, 4], [5], [6, 7]], np.int32))


def error_of(model, batch) -> float:
    """Largest difference between the engine's logprobs and those of the model."""
    worst = 0.0
    for i, n in enumerate(batch.lengths):
        with torch.no_grad():
            expected = plain_logprobs(model, batch.tokens[i, :n]).numpy()
        worst = max(worst, float(np.abs((expected - batch.logprobs[i, :n])[batch.completion_mask[i, :n]]).max()))
    return worst


def test_the_transformers_engine_takes_the_adapter(folders):
    rollout = RolloutConfig(engine="transformers", sampling=SamplingConfig(max_tokens=6))
    worker = RolloutWorker(str(folders["qwen2"]), rollout, "float32", (1,), run_seed=3, lora=LORA)
    rows = np.arange(3)
    base, model = plain(Qwen2ForCausalLM, folders["qwen2"]), adapted(folders["qwen2"])
    worker.use_initial_weights(0)
    assert error_of(base, worker.generate(PROMPTS, rows, 2, step=0, policy_version=0)) < 1e-4
    arrays = export_weights(model, torch.float32)
    worker.load_weights(1, arrays)
    batch = worker.generate(PROMPTS, rows, 2, step=1, policy_version=1)
    assert error_of(model, batch) < 1e-4
    assert error_of(base, batch) > 0.1
    name, *_ = arrays
    with pytest.raises(ValueError, match="missing; send the whole adapter"):
        worker.load_weights(2, {n: a for n, a in arrays.items() if n != name})
    with pytest.raises(ValueError, match=r"the adapter has no .*; was it made with another"):
        worker.load_weights(2, arrays | {"model.norm.weight": np.ones(32, dtype=np.float32)})
    with pytest.raises(ValueError, match="has shape"):
        worker.load_weights(2, arrays | {name: arrays[name][:1]})
    assert worker.policy_version == -1
    worker.close()


@pytest.mark.skipif(BITSANDBYTES, reason="bitsandbytes is installed")
def test_without_bitsandbytes_quantisation_is_refused_in_one_line(folders):
    with pytest.raises(UserError, match=r"model\.lora\.base_quantization: nf4 needs bitsandbytes; pip") as caught:
        load_causal(model_config(folders["llama"], lora=LoRAConfig(base_quantization="nf4")))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not BITSANDBYTES, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_over_4_bit_weights_gradients_and_merge_are_those_of_the_numbers_they_stand_for(kind, folders, tmp_path):
    model = adapted(folders[kind], base_quantization="nf4")
    assert any(p.dtype == torch.uint8 for p in model.parameters())
    found = logits(model)  # without gradients first: what bitsandbytes does to its weights then must not reach the rest
    save_merged(model, tiny_tokenizer(), tmp_path)
    torch.testing.assert_close(logits(plain(KINDS[kind], tmp_path)), found, atol=1e-4, rtol=0)
    same = load_causal(model_config(tmp_path, lora=LORA.model_copy(update={"alpha": 1e-30})))
    sums = []
    for each in (model, same):
        hidden = each.get_input_embeddings()(IDS).detach().requires_grad_(True)
        each(inputs_embeds=hidden).logits.square().sum().backward()
        sums.append(hidden.grad)
    torch.testing.assert_close(sums[0], sums[1], atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not BITSANDBYTES, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_learner_over_quantised_weights_learns_and_resumes(quantization, folders, tmp_path):
    lora = LORA.model_copy(update={"base_quantization": quantization})
    learner = learner_of("dpo", folders, lora)
    for i in range(2):
        step(learner, i)
    learner.save(str(tmp_path))
    again = learner_of("dpo", folders, lora)
    again.restore(str(tmp_path))
    assert step(again, 2) == step(learner, 2)
    assert not differs(adapter_state(again.model), adapter_state(learner.model))


def run_config(**changes) -> RunConfig:
    tree = {"name": "r", "model": {"path": "m", "lora": {}}, "data": {"path": "d.jsonl"}, "algorithm": {"name": "dpo"}}
    return RunConfig.model_validate({**tree, **changes})


def test_what_cannot_be_split_with_an_adapter_is_refused():
    assert run_config(learner={"sharding": {"strategy": "fsdp"}}).model.lora
    with pytest.raises(ValueError, match=r"learner\.sharding\.tensor_parallel: matrices with an adapter stay whole"):
        run_config(learner={"sharding": {"tensor_parallel": 2}}, placement={"policy": {"num_actors": 2}})
    nf4 = {"path": "m", "lora": {"base_quantization": "nf4"}}
    with pytest.raises(ValueError, match=r"base_quantization: quantised weights are not split"):
        run_config(model=nf4, learner={"sharding": {"strategy": "fsdp"}})


def ranks_main(rank: int, size: int, address: str, base: str, folder: Path) -> None:
    """Two steps, a resume and one step more, alone or as one of two ranks that split the model."""
    torch.set_num_threads(1)
    world = World(rank, size, address, timeout=100.0) if size > 1 else None
    sharding = ShardingConfig(strategy="fsdp" if size > 1 else "replicate")

    def build() -> DPOLearner:
        spec = replace(spec_of(40, eps=1e-4), sharding=sharding)
        learner = DPOLearner(model_config(base, lora=LORA), spec, DPOConfig(name="dpo"), world)
        learner.set_data(pairs(), ref_logprobs(6))
        return learner

    first = build()
    for i in range(2):
        step(first, i)
    first.save(str(folder / "commit"))
    again = build()
    again.restore(str(folder / "commit"))
    assert step(again, 2) == step(first, 2)
    first.export_merged(str(folder / "merged"))
    buckets = first.weights("float32")
    if rank == 0:
        save_file({n: torch.from_numpy(a) for b in buckets for n, a in b.items()}, folder / "sent.safetensors")


@pytest.mark.slow
def test_two_ranks_that_split_the_model_learn_the_adapter_of_one(folders, tmp_path):
    for size in (1, 2):
        (tmp_path / str(size)).mkdir()
        address = host_meeting("127.0.0.1")
        run_ranks(ranks_main, size, size, address, str(folders["llama"]), tmp_path / str(size), deadline=120.0)
    for name in ("sent.safetensors", "commit/adapter_model.safetensors", "merged/model.safetensors"):
        assert_same(load_file(tmp_path / "2" / name), load_file(tmp_path / "1" / name), 1e-6)
    base = load_file(folders["llama"] / "model.safetensors")
    assert differs(load_file(tmp_path / "1" / "merged" / "model.safetensors"), base)


def test_save_adapter_writes_what_it_was_given(folders, tmp_path):
    model = adapted(folders["llama"])
    save_adapter(model, adapter_state(model), tmp_path)
    assert not differs(load_file(tmp_path / "adapter_model.safetensors"), adapter_state(model))
