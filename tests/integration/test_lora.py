"""Adapters in real vLLM on the CPU, and whole runs that learn one."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raylign.config import DPOConfig, LoRAConfig, RolloutConfig, SamplingConfig
from raylign.errors import StaleEngineError, UserError
from raylign.learners.preference import DPOLearner
from raylign.models.lora import adapter_state
from raylign.rollout import RolloutWorker
from raylign.types import PromptSet, Ragged, RolloutBatch
from tests.integration.small_runs import Ended, family, hashes, left_behind, metrics, newest_commit, wait_for
from tests.unit.tiny import model_config, pairs, plain, plain_logprobs, ref_logprobs, save_tiny, spec_of

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

EOS = 1
TIMEOUT = 240  # seconds for any one call
LORA = LoRAConfig(rank=12, alpha=24.0)  # vLLM has no slots of this rank, so it takes larger ones
PROMPTS = PromptSet(Ragged.from_rows([[2, 3, 4], [5], [6, 7, 8, 9, 10], *[[11, i] for i in range(13)]], np.int32))
ROWS = np.arange(len(PROMPTS))
OVERRIDE = "model.lora={rank: 4, alpha: 8}"

_child: dict[str, RolloutWorker] = {}  # filled in the child process only


def _start(path: str, lora: LoRAConfig) -> None:
    rollout = RolloutConfig(engine="vllm", kv_cache_gib=0.25, sampling=SamplingConfig(max_tokens=12))
    _child["worker"] = RolloutWorker(path, rollout, "float32", (EOS,), run_seed=3, lora=lora)


def _environment() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _call(method: str, *args):
    return getattr(_child["worker"], method)(*args)


@pytest.fixture
def process():
    """One call at a time in a process of its own, as in a Ray actor."""
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_environment)
    try:
        yield lambda function, *args: pool.submit(function, *args).result(TIMEOUT)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    wide = {"hidden_size": 64, "num_attention_heads": 2, "initializer_range": 0.1}
    return save_tiny(tmp_path_factory.mktemp("base"), Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True, **wide)


@torch.no_grad()
def error_of(model, batch: RolloutBatch) -> float:
    """Largest difference between the engine's logprobs and those of the model."""
    worst = 0.0
    for i, n in enumerate(batch.lengths):
        expected = plain_logprobs(model, batch.tokens[i, :n]).numpy()
        worst = max(worst, float(np.abs((expected - batch.logprobs[i, :n])[batch.completion_mask[i, :n]]).max()))
    return worst


@needs_vllm
def test_vllm_takes_the_adapter_and_samples_as_the_learner_scores(base, process, tmp_path):
    learner = DPOLearner(model_config(base, lora=LORA), spec_of(learning_rate=0.02), DPOConfig(name="dpo"))
    learner.set_data(pairs(), ref_logprobs(6))
    before = set(Path("/dev/shm").glob("raylign-*"))
    process(_start, str(base), LORA)

    process(_call, "use_initial_weights", 0)
    batch = process(_call, "generate", PROMPTS, ROWS, 2, 0, 0)
    assert error_of(plain(Qwen2ForCausalLM, base), batch) < 1e-4
    assert error_of(learner.model, batch) < 1e-4  # a new adapter does nothing

    older = batch
    for version in (1, 2):
        for _ in range(3):
            learner.update_rows(np.arange(6))
        buckets = learner.weights("float32")
        num_bytes = sum(array.nbytes for bucket in buckets for array in bucket.values())
        assert num_bytes == sum(4 * tensor.numel() for tensor in adapter_state(learner.model).values())
        assert process(_call, "load_weights", version, *buckets) == version
        batch = process(_call, "generate", PROMPTS, ROWS, 2, version, version)
        assert error_of(learner.model, batch) < 1e-4
        assert error_of(learner.model, older) > 0.01  # the adapter before this one does show
        older = batch

    with pytest.raises(ValueError, match="missing; send the whole adapter"):
        process(_call, "load_weights", 3, dict([*buckets[0].items()][1:]))
    with pytest.raises(StaleEngineError, match="never synced"):
        process(_call, "generate", PROMPTS, ROWS, 1, 3, 2)
    assert set(Path("/dev/shm").glob("raylign-*")) == before

    learner.export_merged(str(tmp_path))
    assert error_of(plain(Qwen2ForCausalLM, tmp_path), batch) < 1e-4
    process(_call, "close")


@needs_vllm
@pytest.mark.slow
def test_what_vllm_cannot_adapt_is_refused_when_it_starts(process, base, tmp_path):
    with pytest.raises(UserError, match=r"model\.lora\.rank: vLLM serves adapters up to rank 512; lower 513") as caught:
        process(_start, str(base), LoRAConfig(rank=513))
    assert "\n" not in str(caught.value)
    gpt2 = save_tiny(tmp_path, GPT2LMHeadModel, GPT2Config, n_embd=64, n_layer=2, n_head=2, n_positions=64)
    with pytest.raises(UserError, match=r"model\.lora: vLLM cannot serve adapters of this model") as caught:
        process(_start, str(gpt2), LORA)
    assert "\n" not in str(caught.value)


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["ppo", "dpo"])
def test_a_run_learns_an_adapter_and_resumes_bit_by_bit(workshop, name):
    options = ("checkpoint.every_steps=1", "rollout.engine=vllm", OVERRIDE)
    whole = workshop.run(name, f"name={name}_lora", *options)
    if name == "ppo":  # the engine samples as the learner scores: what it was sent is what was learned
        assert max(row["logprob_gap/max"] for row in metrics(whole)) < 1e-4
    assert_published(whole)

    killed = workshop.start(name, f"name={name}_lora_killed", *options)
    folder = workshop.folder / "runs" / f"{name}_lora_killed"
    with Ended(killed):
        wait_for(lambda: newest_commit(folder) >= 2, 300, "commit 2", killed)
        children = family(killed.pid)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(10)
    assert left_behind(children) == []
    resumed = workshop.run(name, f"name={name}_lora_killed", *options, resume=True)
    assert hashes(resumed) == hashes(whole)


@pytest.mark.slow
def test_a_reward_model_learned_by_an_adapter_is_published_whole(workshop):
    folder = workshop.run("reward_model", "name=rm_lora", OVERRIDE)
    source = json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    base, merged = (
        AutoModelForSequenceClassification.from_pretrained(p, num_labels=1, dtype=torch.float32).eval()
        for p in (source, folder / "model")
    )
    for model in (base, merged):
        model.config.pad_token_id = None  # one row at a time: nothing is padding
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()(ids).logits
        torch.testing.assert_close(merged(ids).logits, adapted, atol=1e-4, rtol=0)
    assert "score.weight" in load_file(folder / "model" / "model.safetensors")


def assert_published(folder: Path) -> None:
    """`model/` computes what the base does with `adapter/`, and is not the base."""
    base_path = json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    ids = torch.arange(2, 12)[None]
    base, merged = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (base_path, folder / "model"))
    with torch.no_grad():
        start = base.eval()(ids).logits
        adapted = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()(ids).logits
        torch.testing.assert_close(merged.eval()(ids).logits, adapted, atol=1e-4, rtol=0)
    assert (start - adapted).abs().max() > 1e-3
    commit = folder / "commits" / f"step_{newest_commit(folder):06d}"
    assert {p.name for p in (commit / "policy").glob("*.safetensors")} == {"adapter_model.safetensors"}
