"""Reward models: the right token is read, whatever the padding, and both tokenizer cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from raylign.config import ModelReward
from raylign.errors import UserError
from raylign.rewards import make_source
from raylign.rewards.model import ModelSource
from raylign.types import PromptSet, Ragged, RolloutBatch

WORDS = ["a", "good", "film", "bad", "."]
EOS = 0  # also pad


def tokenizer_of(words: list[str]) -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(["<eos>", "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")


def save(
    folder: Path, words: list[str], kind: type[PreTrainedModel] = LlamaForSequenceClassification, **config
) -> Path:
    torch.manual_seed(0)
    options = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = kind(LlamaConfig(vocab_size=len(words) + 2, pad_token_id=EOS, eos_token_id=EOS, **options, **config))
    model.save_pretrained(folder)
    tokenizer_of(words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("reward") / "model", WORDS, num_labels=1)


TEXTS = [
    ("a good", "film . <eos>"),
    ("a", "bad film"),
    ("a", "<eos>"),
    ("a bad film .", "good good film . <eos>"),
    ("film .", ""),
]


def rollout() -> RolloutBatch:
    tokenizer = tokenizer_of(WORDS)
    pairs = [(tokenizer(p)["input_ids"], tokenizer(c)["input_ids"]) for p, c in TEXTS]
    width = max(len(p) + len(c) for p, c in pairs) + 1
    tokens, mask = np.zeros((len(pairs), width), np.int32), np.zeros((len(pairs), width), np.bool_)
    for i, (p, c) in enumerate(pairs):
        tokens[i, : len(p) + len(c)] = p + c
        mask[i, len(p) : len(p) + len(c)] = True
    return RolloutBatch(
        tokens=tokens,
        prompt_lengths=np.array([len(p) for p, _ in pairs], np.int32),
        completion_mask=mask,
        logprobs=np.zeros(mask.shape, np.float32),
        finished=np.array([c.endswith("<eos>") for _, c in TEXTS]),
        prompt_rows=np.arange(len(pairs), dtype=np.int64),
        policy_version=np.zeros(len(pairs), np.int64),
    )


PROMPTS = PromptSet(Ragged.from_rows([[0]] * len(TEXTS), np.int32))


def one_by_one(folder: Path, rows: list[list[int]]) -> np.ndarray:
    """Hugging Face's own forward on single rows without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    # With pad == eos it would step over a real eos at the end, so the test gives it no pad at all.
    model.config.pad_token_id = None
    with torch.inference_mode():
        return np.array([model(torch.tensor([row])).logits.item() for row in rows], np.float32)


@pytest.mark.parametrize("batch_tokens", [1, 12, 1000])
def test_scores_are_those_of_unpadded_rows(folder, batch_tokens):
    batch = rollout()
    expected = one_by_one(folder, [row[:n].tolist() for row, n in zip(batch.tokens, batch.lengths, strict=True)])
    scores = ModelSource(str(folder), tokenizer_of(WORDS), batch_tokens).score(batch, PROMPTS)
    np.testing.assert_allclose(scores.values, expected, atol=1e-5)
    assert scores.valid.all()
    assert np.ptp(expected) > 1e-3  # or the agreement would say nothing


def test_reading_by_pad_id_would_be_wrong(folder):
    """Negative control: what transformers does with padding when pad is eos."""
    batch = rollout()
    scores = ModelSource(str(folder), tokenizer_of(WORDS), 1000).score(batch, PROMPTS)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        by_pad_id = model(torch.from_numpy(batch.tokens).long()).logits.squeeze(-1).numpy()
    assert np.abs(scores.values - by_pad_id)[batch.finished].min() > 1e-4


def test_bfloat16_is_close_and_not_the_same(folder):
    full = ModelSource(str(folder), tokenizer_of(WORDS), 1000).score(rollout(), PROMPTS).values
    half = ModelSource(str(folder), tokenizer_of(WORDS), 1000, "bfloat16").score(rollout(), PROMPTS).values
    np.testing.assert_allclose(half, full, atol=0.02)
    assert not np.array_equal(half, full)


def test_another_vocabulary_is_tokenised_anew(tmp_path):
    words = ["film", ".", "bad", "unused", "a", "good"]
    folder = save(tmp_path / "model", words, num_labels=1)
    own = tokenizer_of(words)
    rows = [own(f"{p} {c}")["input_ids"] for p, c in TEXTS]
    scores = ModelSource(str(folder), tokenizer_of(WORDS), 1000).score(rollout(), PROMPTS)
    np.testing.assert_allclose(scores.values, one_by_one(folder, rows), atol=1e-5)


def test_a_score_that_is_not_finite_is_not_valid(tmp_path):
    folder = save(tmp_path / "model", WORDS, num_labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[2 + WORDS.index("bad")] = torch.nan
    model.save_pretrained(folder)
    scores = ModelSource(str(folder), tokenizer_of(WORDS), 1000).score(rollout(), PROMPTS)
    assert scores.valid.tolist() == ["bad" not in f"{p} {c}" for p, c in TEXTS]


def test_make_source_makes_it(folder):
    reward = ModelReward(type="model", path=str(folder))
    assert isinstance(make_source(reward, tokenizer_of(WORDS), None), ModelSource)


def test_models_that_cannot_score(tmp_path):
    (tmp_path / "empty").mkdir()
    two = save(tmp_path / "two", WORDS, num_labels=2)
    headless = save(tmp_path / "headless", WORDS, kind=LlamaForCausalLM, num_labels=1)
    bare = save(tmp_path / "bare", WORDS, num_labels=1)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    faults = {
        str(tmp_path / "empty"): "cannot load",
        str(two): "has 2 outputs, but a reward model has 1",
        str(headless): "lacks the weights score.weight",
        str(bare): "tokenizer",
    }
    for path, problem in faults.items():
        with pytest.raises(UserError, match=problem) as caught:
            ModelSource(path, tokenizer_of(WORDS), 1000)
        assert str(caught.value).startswith("reward.path: ")
        assert "\n" not in str(caught.value)
