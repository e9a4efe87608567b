"""The worker's versions, seeds and layout, over the transformers engine."""

from inspect import signature
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import raylign.rollout.factory as factory
from raylign.config import RolloutConfig, SamplingConfig
from raylign.config.engines import ENGINES, traits_of
from raylign.errors import StaleEngineError, UserError
from raylign.rollout import Completion, RolloutWorker, make_engine
from raylign.rollout.transformers_engine import TransformersEngine
from raylign.rollout.worker import pack, sample_seed
from raylign.types import PromptSet, Ragged

ROLLOUT = RolloutConfig(engine="transformers", sampling=SamplingConfig(max_tokens=5))
PROMPTS = PromptSet(Ragged.from_rows([[2, 3, 4], [5], [6, 7], [8]], np.int32))


def tiny_model(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        initializer_range=0.4,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model(0).save_pretrained(path)
    return str(path)


@pytest.fixture
def worker(path):
    worker = RolloutWorker(path, ROLLOUT, "float32", (1,), run_seed=3)
    yield worker
    worker.close()


def weights(seed: int) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in tiny_model(seed).named_parameters()}


def test_a_fresh_worker_serves_nothing_until_it_is_synced(worker):
    assert worker.policy_version == -1
    with pytest.raises(StaleEngineError, match=r"version 0 but never synced"):
        worker.generate(PROMPTS, np.array([0]), 1, step=0, policy_version=0)
    with pytest.raises(StaleEngineError, match="never synced"):  # not even if asked for "no version"
        worker.generate(PROMPTS, np.array([0]), 1, step=0, policy_version=-1)
    assert worker.use_initial_weights(0) == 0
    assert len(worker.generate(PROMPTS, np.array([0]), 1, step=0, policy_version=0)) == 1


def test_a_stale_worker_names_both_versions_and_serves_after_the_load(worker):
    items = list(weights(1).items())
    assert worker.load_weights(4, dict(items[:2]), dict(items[2:])) == 4
    with pytest.raises(StaleEngineError, match=r"version 5, .* version 4"):
        worker.generate(PROMPTS, np.array([0]), 1, step=0, policy_version=5)
    with pytest.raises(StaleEngineError, match="no longer the initial"):
        worker.use_initial_weights(0)
    worker.load_weights(5, dict(items))
    assert worker.generate(PROMPTS, np.array([0]), 1, step=0, policy_version=5).policy_version.tolist() == [5]


def test_a_failed_load_leaves_the_worker_unsynced(worker):
    worker.use_initial_weights(0)
    incomplete = weights(1)
    del incomplete["model.norm.weight"]
    with pytest.raises(ValueError, match="missing"):
        worker.load_weights(1, incomplete)
    assert worker.policy_version == -1
    with pytest.raises(StaleEngineError, match="never synced"):
        worker.generate(PROMPTS, np.array([0]), 1, step=0, policy_version=0)


def test_samples_are_prompt_major_and_independent_of_shard_and_worker(worker, path):
    worker.use_initial_weights(0)
    whole = worker.generate(PROMPTS, np.array([0, 1, 2, 3]), 3, step=7, policy_version=0)
    assert whole.prompt_rows.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    other = RolloutWorker(path, ROLLOUT, "float32", (1,), run_seed=3)
    other.use_initial_weights(0)
    part = other.generate(PROMPTS, np.array([3, 2]), 3, step=7, policy_version=0)
    for row in range(6):
        same = [9, 10, 11, 6, 7, 8][row]
        n = part.lengths[row]
        assert n == whole.lengths[same]
        assert part.tokens[row, :n].tolist() == whole.tokens[same, :n].tolist()
    next_step = other.generate(PROMPTS, np.array([3, 2]), 3, step=8, policy_version=0)
    assert next_step.tokens.tolist() != part.tokens.tolist()
    other.close()


def test_seeds_are_stable_distinct_and_63_bit():
    seeds = {
        sample_seed(run, step, row, sample)
        for run in range(3)
        for step in range(5)
        for row in range(20)
        for sample in range(4)
    }
    assert len(seeds) == 3 * 5 * 20 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    # Written down: if this changes, resumed runs no longer repeat their samples.
    assert sample_seed(0, 0, 0, 0) == 5_809_880_761_037_817_570


def test_the_batch_is_laid_out_as_types_says():
    """The worked example of RolloutBatch."""
    prompts = [np.array([5, 9], dtype=np.int32), np.array([6], dtype=np.int32)]
    completions = [
        Completion(np.array([7, 1], dtype=np.int32), np.array([-0.5, -0.25], dtype=np.float32), True),
        Completion(np.array([8], dtype=np.int32), np.array([-2.0], dtype=np.float32), False),
    ]
    batch = pack(prompts, completions, np.array([10, 20]), 3)
    assert batch.tokens.tolist() == [[5, 9, 7, 1], [6, 8, 0, 0]]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.completion_mask.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert batch.logprobs.tolist() == [[0.0, 0.0, -0.5, -0.25], [0.0, -2.0, 0.0, 0.0]]
    assert batch.finished.tolist() == [True, False]
    assert batch.prompt_rows.tolist() == [10, 20]
    assert batch.policy_version.tolist() == [3, 3]
    assert batch.lengths.tolist() == [4, 2]
    kinds = [batch.tokens, batch.prompt_lengths, batch.completion_mask, batch.logprobs, batch.prompt_rows]
    assert [a.dtype for a in kinds] == [np.int32, np.int32, np.bool_, np.float32, np.int64]


def test_a_prompt_that_leaves_no_room_is_for_the_user_to_fix(worker):
    worker.use_initial_weights(0)
    prompts = PromptSet(Ragged.from_rows([[2] * 11, [2] * 12, []], np.int32))
    assert len(worker.generate(prompts, np.array([0]), 1, step=0, policy_version=0)) == 1  # 11 + 5 = 16 fits
    with pytest.raises(
        UserError, match=r"prompt row 1: its 12 tokens .*max_tokens 5 exceed .* 16; .*max_prompt_tokens: 11"
    ) as caught:
        worker.generate(prompts, np.array([0, 1]), 1, step=0, policy_version=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="prompt row 2: it has no tokens"):
        worker.generate(prompts, np.array([2]), 1, step=0, policy_version=0)


def test_metrics_count_and_start_over(worker):
    worker.load_weights(1, weights(1))
    batch = worker.generate(PROMPTS, np.array([0, 1]), 2, step=0, policy_version=1)
    metrics = worker.pop_metrics()
    assert metrics["tokens/generated"] == batch.completion_mask.sum()
    assert metrics["time/generate"] > 0
    assert metrics["time/load_weights"] > 0
    assert set(worker.pop_metrics().values()) == {0.0}


def test_engine_choice_follows_what_is_installed(path, monkeypatch):
    monkeypatch.setattr(factory, "find_spec", lambda name: None)
    engine = make_engine("auto", path, RolloutConfig(), "float32")
    assert isinstance(engine, TransformersEngine)
    engine.close()
    with pytest.raises(UserError, match=r"rollout\.engine: vllm is not installed; pip install"):
        make_engine("vllm", path, RolloutConfig(), "float32")


def test_every_engine_of_the_table_can_be_imported():
    parameters = {name: [*signature(resolve_name(engine.class_path)).parameters] for name, engine in ENGINES.items()}
    expected = ["model_path", "rollout", "dtype", "trust_remote_code", "lora", "sleeps"]
    assert parameters == dict.fromkeys(("vllm", "transformers"), expected)


def test_traits_of_an_engine_that_is_not_known_yet_are_those_of_vllm():
    assert traits_of("auto") == traits_of("my.engine:Engine") == ENGINES["vllm"]
