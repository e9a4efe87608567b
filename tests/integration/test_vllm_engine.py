"""Real vLLM on the CPU against the Hugging Face model.

The engine lives in a process of its own, as it does in a Ray actor: vLLM freezes torch's thread count and takes the
default torch.distributed group of the process it is in.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context

import numpy as np
import psutil
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from raylign.config import RolloutConfig, SamplingConfig
from raylign.errors import StaleEngineError, UserError
from raylign.rollout import RolloutWorker
from raylign.types import PromptSet, Ragged

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

VOCAB = 64
EOS = 1
TIMEOUT = 240  # seconds for any one call
PROMPTS = PromptSet(Ragged.from_rows([[2, 3, 4], [5], [6, 7, 8, 9, 10], *[[11, i] for i in range(13)]], np.int32))
ROWS = np.arange(len(PROMPTS))
ALL = [PROMPTS.tokens[i] for i in range(len(PROMPTS))]

_child: dict[str, RolloutWorker] = {}  # filled in the child process only


def _start(path: str, tensor_parallel: int = 1) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    sampling = SamplingConfig(max_tokens=12)
    rollout = RolloutConfig(engine="vllm", kv_cache_gib=0.25, tensor_parallel=tensor_parallel, sampling=sampling)
    _child["worker"] = RolloutWorker(path, rollout, "float32", (EOS,), run_seed=3)


def _worker_call(method, *args, **kwargs):
    return getattr(_child["worker"], method)(*args, **kwargs)


def _engine_generate(prompts, sampling, seeds, stop_token_ids):
    return _child["worker"]._engine.generate(prompts, sampling, seeds, stop_token_ids)


def _children() -> list[int]:
    """The engine's ranks: vLLM names them."""
    return [p.pid for p in psutil.Process().children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())]


class Child:
    """The worker in its process; every call is bounded."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def __getattr__(self, method):
        return lambda *args, **kwargs: self._pool.submit(_worker_call, method, *args, **kwargs).result(TIMEOUT)

    def children(self) -> list[int]:
        return self._pool.submit(_children).result(TIMEOUT)

    def engine_generate(self, *args):
        return self._pool.submit(_engine_generate, *args).result(TIMEOUT)


def tiny_model(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=7,  # not the eos of the run: the engine must not stop at it
    )
    return Qwen2ForCausalLM(config).eval()


def weights(seed: int) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy() for name, p in tiny_model(seed).named_parameters()}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = tiny_model(0)
    model.generation_config.top_k = 1  # must not reach the samples
    model.generation_config.do_sample = True
    model.save_pretrained(path)
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start, initargs=(str(path),))
    try:
        child = Child(pool)
        child.use_initial_weights(0)
        yield child
        child.close()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@pytest.mark.slow
def test_an_engine_of_two_ranks_samples_from_the_weights_loaded_last(tmp_path):
    tiny_model(0).save_pretrained(tmp_path)
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_start, initargs=(str(tmp_path), 2))
    try:
        child = Child(pool)
        for seed in (1, 0):
            child.load_weights(seed, weights(seed))
            done = child.engine_generate(ALL, SamplingConfig(max_tokens=12), list(range(len(ALL))), (EOS,))
            assert logprob_error(tiny_model(seed), ALL, done, 1.0) < 1e-4
            assert logprob_error(tiny_model(1 - seed), ALL, done, 1.0) > 0.1  # other weights do show
        ranks = child.children()
        child.close()
        _, alive = psutil.wait_procs([psutil.Process(pid) for pid in ranks if psutil.pid_exists(pid)], timeout=30)
        assert len(ranks) >= 2
        assert alive == []
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@torch.no_grad()
def logprob_error(model, prompts, completions, temperature) -> float:
    worst = 0.0
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion.token_ids]], dtype=torch.long)
        logprobs = (model(ids).logits[0] / temperature).log_softmax(-1)
        expected = logprobs[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()
        worst = max(worst, float(np.abs(expected - completion.logprobs).max()))
    return worst


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_logprobs_are_those_of_the_weights_loaded_last(worker, temperature, seed):
    worker.load_weights(seed, weights(seed))
    prompts = ALL
    completions = worker.engine_generate(
        prompts, SamplingConfig(max_tokens=12, temperature=temperature), list(range(len(prompts))), (EOS,)
    )
    assert logprob_error(tiny_model(seed), prompts, completions, temperature) < 1e-4
    assert logprob_error(tiny_model(1 - seed), prompts, completions, temperature) > 0.1  # other weights do show
    assert logprob_error(tiny_model(seed), prompts, completions, temperature * 1.1) > 1e-2  # and so does T


def test_bfloat16_bits_load_into_the_engine(worker):
    model, arrays = tiny_model(1), {}
    for name, parameter in model.named_parameters():
        rounded = parameter.detach().bfloat16()
        arrays[name] = rounded.view(torch.uint16).numpy()
        parameter.data = rounded.float()
    worker.load_weights(1, arrays)
    prompts = ALL
    completions = worker.engine_generate(prompts, SamplingConfig(max_tokens=12), list(range(len(prompts))), (EOS,))
    assert logprob_error(model, prompts, completions, 1.0) < 1e-4


def test_a_stale_engine_is_caught_and_serves_once_it_is_loaded(worker):
    worker.load_weights(1, weights(1))
    with pytest.raises(StaleEngineError, match=r"version 2, .* version 1"):
        worker.generate(PROMPTS, ROWS, 1, step=0, policy_version=2)
    worker.load_weights(2, weights(0))
    assert set(worker.generate(PROMPTS, ROWS, 1, step=0, policy_version=2).policy_version) == {2}


def test_incomplete_or_foreign_weights_leave_the_engine_unsynced(worker):
    incomplete = weights(1)
    del incomplete["model.layers.1.self_attn.k_proj.weight"]  # vLLM fuses it with q and v and would not miss it
    with pytest.raises(ValueError, match=r"k_proj\.weight missing"):
        worker.load_weights(3, incomplete)
    with pytest.raises(StaleEngineError, match="never synced"):
        worker.generate(PROMPTS, ROWS, 1, step=0, policy_version=3)
    with pytest.raises(ValueError, match="no parameter transformer"):
        worker.load_weights(3, weights(1) | {"transformer.wte": np.ones(1, dtype=np.float32)})
    worker.load_weights(3, weights(1))
    assert len(worker.generate(PROMPTS, ROWS, 1, step=0, policy_version=3)) == len(ROWS)


def test_samples_depend_on_their_seed_and_not_on_the_batch(worker):
    worker.load_weights(1, weights(1))
    whole = worker.generate(PROMPTS, ROWS, 4, step=5, policy_version=1)
    part = worker.generate(PROMPTS, ROWS[[9, 2]], 4, step=5, policy_version=1)
    for i, same in enumerate([36, 37, 38, 39, 8, 9, 10, 11]):
        assert part.prompt_rows[i] == whole.prompt_rows[same]
        n = part.lengths[i]
        assert n == whole.lengths[same]
        assert part.tokens[i, :n].tolist() == whole.tokens[same, :n].tolist()
    again = worker.generate(PROMPTS, ROWS, 4, step=5, policy_version=1)
    assert np.array_equal(again.tokens, whole.tokens)
    assert np.array_equal(again.logprobs, whole.logprobs)  # bit for bit
    other_step = worker.generate(PROMPTS, ROWS, 4, step=6, policy_version=1)
    assert other_step.tokens.tolist() != whole.tokens.tolist()


def test_more_prompt_tokens_than_one_pass_takes(worker):
    """vLLM's passes hold 4,096 tokens or so; here are three times as many, of prompts that share nothing."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(8, VOCAB, size=47).astype(np.int32) for _ in range(260)]
    sampling = SamplingConfig(max_tokens=4)
    whole = worker.engine_generate(prompts, sampling, list(range(260)), (EOS,))
    part = worker.engine_generate(prompts[200:], sampling, list(range(200, 260)), (EOS,))
    assert [c.token_ids.tolist() for c in whole[200:]] == [c.token_ids.tolist() for c in part]


def test_finished_says_whether_a_stop_token_ended_the_completion(worker):
    prompts = [np.array([5], dtype=np.int32)] * 200
    sampling = SamplingConfig(max_tokens=12, temperature=2.0)
    completions = worker.engine_generate(prompts, sampling, list(range(200)), (EOS, 2))
    assert {c.finished for c in completions} == {True, False}
    for c in completions:
        assert len(c.token_ids) == len(c.logprobs)
        assert c.finished == (c.token_ids[-1] in (EOS, 2))
        assert not np.isin(c.token_ids[:-1], (EOS, 2)).any()
        assert c.finished or len(c.token_ids) == 12
    assert any(7 in c.token_ids[:-1] for c in completions)  # the eos of config.json Ended nothing


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (1.0, 5)])
def test_samples_have_the_exact_distribution(worker, top_p, top_k):
    worker.load_weights(1, weights(1))
    num = 3000
    prompt = np.array([2, 3, 4], dtype=np.int32)
    sampling = SamplingConfig(max_tokens=1, temperature=0.7, top_p=top_p, top_k=top_k)
    completions = worker.engine_generate([prompt] * num, sampling, list(range(num)), ())
    with torch.no_grad():
        p = (tiny_model(1)(torch.tensor([prompt.tolist()])).logits[0, -1].double() / 0.7).softmax(-1).numpy()
    order = np.argsort(-p)
    keep = (np.cumsum(p[order]) - p[order] < top_p) & (np.arange(VOCAB) < (top_k or VOCAB))
    exact = np.zeros(VOCAB)
    exact[order[keep]] = p[order[keep]] / p[order[keep]].sum()
    counts = np.bincount([c.token_ids[0] for c in completions], minlength=VOCAB)
    assert counts[exact == 0].sum() == 0
    common = exact * num >= 5  # the chi-square law needs expected counts of about 5; the rest is one cell
    observed, expected = counts[common], num * exact[common]
    observed = np.append(observed, num - observed.sum())
    expected = np.append(expected, max(num - expected.sum(), 1e-9))
    chi_square = ((observed - expected) ** 2 / np.maximum(expected, 1.0)).sum()
    degrees = len(observed) - 1
    assert chi_square < degrees + 4.5 * np.sqrt(2 * degrees)
    np.testing.assert_allclose(
        [c.logprobs[0] for c in completions], [np.log(exact[c.token_ids[0]]) for c in completions], atol=1e-4
    )


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_a_temperature_that_vllm_would_not_keep_is_refused(worker, temperature):
    with pytest.raises(UserError, match=r"rollout\.sampling\.temperature: vLLM does not sample at"):
        worker.engine_generate([PROMPTS.tokens[0]], SamplingConfig(temperature=temperature), [1], (EOS,))
