"""The transformers engine against the model's own distribution."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import raylign.rollout.transformers_engine as module
from raylign.config import RolloutConfig, SamplingConfig
from raylign.errors import UserError
from raylign.rollout.transformers_engine import TransformersEngine
from raylign.rollout.weights import tied_names

VOCAB = 12
PROMPTS = [np.array(p, dtype=np.int32) for p in ([2, 3, 4], [5], [6, 7, 8, 9, 10], [2, 3])]


def tiny_model(seed: int, tied: bool = True) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.4,  # far from uniform, so that a wrong distribution shows
        eos_token_id=1,
        pad_token_id=1,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = tiny_model(0)
    # Settings that must not reach the samples: the engine samples from the policy and nothing else.
    model.generation_config.top_k = 1
    model.generation_config.do_sample = True
    model.generation_config.repetition_penalty = 5.0
    model.save_pretrained(path)
    return str(path)


@pytest.fixture
def engine(path):
    engine = TransformersEngine(path, RolloutConfig(), "float32")
    yield engine
    engine.close()


@torch.no_grad()
def expected_logprobs(model, prompt, completion, temperature) -> np.ndarray:
    ids = torch.tensor([[*prompt, *completion.token_ids]], dtype=torch.long)
    logprobs = (model(ids).logits[0] / temperature).log_softmax(-1)
    targets = ids[0, len(prompt) :]
    return logprobs[len(prompt) - 1 : -1].gather(1, targets[:, None])[:, 0].numpy()


def assert_logprobs_match(model, prompts, completions, temperature, tolerance=1e-5):
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = expected_logprobs(model, prompt, completion, temperature)
        np.testing.assert_allclose(completion.logprobs, expected, atol=tolerance)


def as_numpy(model) -> list[tuple[str, np.ndarray]]:
    return [(name, p.detach().numpy()) for name, p in model.named_parameters()]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_models_own(path, engine, temperature):
    sampling = SamplingConfig(max_tokens=8, temperature=temperature)
    completions = engine.generate(PROMPTS, sampling, [1, 2, 3, 4], (1,))
    model = AutoModelForCausalLM.from_pretrained(path)
    assert_logprobs_match(model, PROMPTS, completions, temperature)
    assert all(c.logprobs.dtype == np.float32 and c.token_ids.dtype == np.int32 for c in completions)
    with pytest.raises(AssertionError):  # the comparison does see a wrong temperature
        assert_logprobs_match(model, PROMPTS, completions, temperature * 1.1)


def test_a_sample_follows_from_its_seed_and_not_from_its_batch(engine, monkeypatch):
    sampling = SamplingConfig(max_tokens=8)
    seeds = [2**62 + 11, 7, 7, 3]
    together = engine.generate(PROMPTS, sampling, seeds, (1,))
    monkeypatch.setattr(module, "CHUNK_TOKENS", 1)  # one row a chunk
    apart = engine.generate(PROMPTS, sampling, seeds, (1,))
    reversed_ = engine.generate(PROMPTS[::-1], sampling, seeds[::-1], (1,))[::-1]
    for a, b, c in zip(together, apart, reversed_, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist() == c.token_ids.tolist()
    others = engine.generate(PROMPTS, sampling, [s + 1 for s in seeds], (1,))
    assert [c.token_ids.tolist() for c in others] != [c.token_ids.tolist() for c in together]


def test_stop_token_ends_and_belongs_to_the_completion_though_pad_is_eos(engine):
    sampling = SamplingConfig(max_tokens=6)
    completions = engine.generate([PROMPTS[0]] * 60, sampling, range(60), (1, 0))  # 0 is what rows are padded with
    finished = [c for c in completions if c.finished]
    cut = [c for c in completions if not c.finished]
    assert finished
    assert cut
    for c in completions:
        assert len(c.token_ids) == len(c.logprobs)
    for c in finished:
        assert c.token_ids[-1] in (0, 1)
        assert not np.isin(c.token_ids[:-1], (0, 1)).any()
    for c in cut:
        assert len(c.token_ids) == 6
        assert not np.isin(c.token_ids, (0, 1)).any()


def test_only_the_stop_tokens_given_end_a_completion(engine):
    completions = engine.generate([PROMPTS[0]] * 30, SamplingConfig(max_tokens=6), range(30), ())
    assert all(len(c.token_ids) == 6 and not c.finished for c in completions)
    assert any(1 in c.token_ids[:-1] for c in completions)  # the model's eos was drawn and passed over


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.0, 0.8, 0), (1.0, 1.0, 4)]
)
def test_samples_have_the_exact_distribution(path, engine, temperature, top_p, top_k):
    num = 4000
    sampling = SamplingConfig(max_tokens=1, temperature=temperature, top_p=top_p, top_k=top_k)
    completions = engine.generate([PROMPTS[0]] * num, sampling, range(num), ())
    drawn = np.array([c.token_ids[0] for c in completions])

    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0].tolist()])).logits[0, -1].double() / temperature
    p = logits.softmax(-1).numpy()
    order = np.argsort(-p)
    mass_before = np.cumsum(p[order]) - p[order]
    keep = (mass_before < top_p) & (np.arange(VOCAB) < (top_k or VOCAB))
    exact = np.zeros(VOCAB)
    exact[order[keep]] = p[order[keep]]
    exact /= exact.sum()

    counts = np.bincount(drawn, minlength=VOCAB)
    support = exact > 0
    assert counts[~support].sum() == 0
    chi_square = ((counts[support] - num * exact[support]) ** 2 / (num * exact[support])).sum()
    assert chi_square < 31.3  # 0.999 quantile of 11 degrees of freedom
    uniform = np.full(VOCAB, num / VOCAB)
    assert ((counts - uniform) ** 2 / uniform).sum() > 31.3  # which the test tells from another distribution
    expected = [np.log(exact[token]) for token in drawn]
    np.testing.assert_allclose([c.logprobs[0] for c in completions], expected, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_loaded_weights_are_the_ones_that_sample(tmp_path, tied):
    tiny_model(0, tied).save_pretrained(tmp_path)
    engine = TransformersEngine(str(tmp_path), RolloutConfig(), "float32")
    sampling = SamplingConfig(max_tokens=8)
    before = engine.generate(PROMPTS, sampling, [1, 2, 3, 4], ())
    other = tiny_model(1, tied)
    engine.load_weights(as_numpy(other))
    after = engine.generate(PROMPTS, sampling, [1, 2, 3, 4], ())
    assert [c.token_ids.tolist() for c in before] != [c.token_ids.tolist() for c in after]
    assert_logprobs_match(other, PROMPTS, after, 1.0)
    engine.close()


def test_uint16_weights_are_bfloat16_bits_and_may_be_read_only(engine, recwarn):
    other = tiny_model(1)
    weights = []
    for name, parameter in other.named_parameters():
        rounded = parameter.detach().bfloat16()
        weights.append((name, rounded.view(torch.uint16).numpy()))
        parameter.data = rounded.float()
    for _, array in weights:
        array.flags.writeable = False  # as Ray hands them out
    engine.load_weights(weights)
    completions = engine.generate(PROMPTS, SamplingConfig(max_tokens=8), [1, 2, 3, 4], ())
    assert_logprobs_match(other, PROMPTS, completions, 1.0)
    assert not [w for w in recwarn if "not writable" in str(w.message)]


def test_incomplete_foreign_and_misshapen_weights_are_refused(engine):
    weights = as_numpy(tiny_model(1))
    with pytest.raises(ValueError, match=r"model\.norm\.weight missing"):
        engine.load_weights([w for w in weights if w[0] != "model.norm.weight"])
    with pytest.raises(ValueError, match=r"no parameter transformer\.wte"):
        engine.load_weights([("transformer.wte", weights[0][1]), *weights])
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \(1,\), not \(16,\)"):
        engine.load_weights([*weights, ("model.norm.weight", np.ones(1, dtype=np.float32))])
    engine.load_weights(weights)  # and the whole model is accepted


def test_tied_parameters_know_their_other_names():
    pair = ("model.embed_tokens.weight", "lm_head.weight")
    assert tied_names(tiny_model(0, tied=True)) == {pair[0]: (pair[1],), pair[1]: (pair[0],)}
    assert tied_names(tiny_model(0, tied=False)) == {}


def test_a_context_longer_than_the_models_is_refused(path):
    with pytest.raises(
        UserError, match=r"rollout\.max_model_len: 65 is more than the model's context of 64; set 64 or less"
    ):
        TransformersEngine(path, RolloutConfig(max_model_len=65), "float32")
    engine = TransformersEngine(path, RolloutConfig(max_model_len=32), "float32")
    assert engine.max_model_len == 32
    engine.close()
