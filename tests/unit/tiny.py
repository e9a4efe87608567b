"""Tiny models and batches for the tests of models and learners, and how a row is scored with nothing but transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from raylign.config import ModelConfig, OptimizerConfig
from raylign.learners.learner import Learner
from raylign.learners.spec import LearnerSpec
from raylign.types import Experience, FloatArray, LabelledSet, PairSet, Ragged, SequenceSet

VOCAB = 64
EOS = 1  # also the padding token: masks must not come from ids

TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": EOS,
    "eos_token_id": EOS,
    "bos_token_id": None,
    "initializer_range": 0.3,  # far from uniform, so that a wrong token or position shows
}


def save_tiny(
    folder: Path, kind: type[PreTrainedModel], config: type[PreTrainedConfig], seed: int = 0, **options: Any
) -> Path:
    """A folder with a random model and its tokenizer; no padding embedding is zeroed."""
    torch.manual_seed(seed)
    model = kind(config(**{**TINY, **options}))
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 0.3)  # pyright: ignore  (Embedding)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<unk>": 0, "<eos>": EOS, **{f"w{i}": i for i in range(2, VOCAB)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")


def model_config(folder: Path | str, **options: Any) -> ModelConfig:
    return ModelConfig(**{"path": str(folder), "compute_dtype": "float32", **options})


def spec_of(
    micro_batch_tokens: int = 4096, total_steps: int = 100, max_skipped_steps: int = 3, seed: int = 0, **options
):
    """A spec without clipping, so that the gradient of a step is the gradient of the loss."""
    optimizer = OptimizerConfig(**{"learning_rate": 1e-3, "max_grad_norm": 1e9, **options})
    return LearnerSpec(
        optimizer, total_steps, micro_batch_tokens, "float32", seed=seed, max_skipped_steps=max_skipped_steps
    )


def rows_of(num_rows: int, seed: int, prompt: tuple[int, int] = (1, 6), completion: tuple[int, int] = (1, 9)):
    """Random rows that hold eos inside, with their completion masks; every third mask has a hole."""
    rng = np.random.default_rng(seed)
    tokens, masks = [], []
    for i in range(num_rows):
        first, length = int(rng.integers(*prompt)), int(rng.integers(*completion))
        row = rng.integers(0, VOCAB, first + length)
        row[rng.integers(0, len(row))] = EOS
        mask = np.arange(len(row)) >= first
        if i % 3 == 0 and length >= 3:
            mask[first + 1] = False
        tokens.append(row)
        masks.append(mask)
    return tokens, masks


def sequences(num_rows: int = 8, seed: int = 0) -> SequenceSet:
    tokens, masks = rows_of(num_rows, seed)
    return SequenceSet(Ragged.from_rows(tokens, np.int32), Ragged.from_rows(masks, np.bool_))


def pairs(num_pairs: int = 6, seed: int = 0) -> PairSet:
    return PairSet(sequences(num_pairs, seed), sequences(num_pairs, seed + 1000))


def labelled(num_rows: int = 6, seed: int = 0) -> LabelledSet:
    """Two in three rows are good. The mismatched rows are other rows, which is all that a learner knows of them."""
    return LabelledSet(sequences(num_rows, seed), np.arange(num_rows) % 3 > 0, sequences(num_rows, seed + 2000))


def experience(num_rows: int = 8, seed: int = 0, width: int | None = None) -> Experience:
    """Random experience whose arrays are `width` wide; what stands outside of the rows must not matter."""
    tokens, masks = rows_of(num_rows, seed)
    rng = np.random.default_rng(seed + 1)
    lengths = np.array([len(row) for row in tokens], dtype=np.int64)
    shape = (num_rows, width or int(lengths.max()))
    padded, mask = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.bool_)
    floats: dict[str, Any] = {
        name: np.zeros(shape, dtype=np.float32) for name in ("old_logprobs", "values", "advantages", "returns")
    }
    for i, row in enumerate(tokens):
        padded[i, : len(row)] = row
        mask[i, : len(row)] = masks[i]
        for array in floats.values():
            array[i, : len(row)] = rng.normal(size=len(row)) * masks[i]
    # Near the logprob of a random token, so that the ratio is clipped for some tokens and not for others.
    floats["old_logprobs"] = np.where(mask, floats["old_logprobs"] - 4, 0).astype(np.float32)
    return Experience(tokens=padded, lengths=lengths, completion_mask=mask, **floats)


def plain_logprobs(model: PreTrainedModel, row: np.ndarray, temperature: float = 1.0) -> Tensor:
    """`log p(row[t] | row[:t])` by the full forward pass of transformers on one row without padding: [L], 0 at t = 0."""
    ids = torch.from_numpy(np.asarray(row, dtype=np.int64))
    logits = model(input_ids=ids[None]).logits[0, :-1] / temperature
    picked = torch.log_softmax(logits, dim=-1)[torch.arange(len(ids) - 1), ids[1:]]
    return torch.cat([picked.new_zeros(1), picked])


def plain(kind: Any, folder: Path) -> PreTrainedModel:
    """The model as transformers loads it."""
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = None  # one row at a time: nothing is padding
    return model


def completion_logprob(model: PreTrainedModel, side: SequenceSet, row: int) -> Tensor:
    """Sum of the logprobs of a row's completion tokens, at temperature 1."""
    return plain_logprobs(model, side.tokens[row])[torch.from_numpy(side.completion_mask[row])].sum()


def ref_logprobs(num_pairs: int) -> tuple[FloatArray, FloatArray]:
    """Reference sums of chosen and rejected, near those of random completions."""
    rng = np.random.default_rng(5)
    chosen, rejected = (rng.normal(-20, 3, num_pairs).astype(np.float32) for _ in range(2))
    return chosen, rejected


class GradientTrap:
    """Keeps the gradients that each optimizer step of a learner sees."""

    def __init__(self, learner: Learner) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self._named = learner.named
        learner.optimizer.register_step_pre_hook(self._keep)

    def _keep(self, *_: Any) -> None:
        self.steps.append(
            {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in self._named.items()}
        )


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(
            left[name], right[name], atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )


def differs(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return any(not torch.equal(left[name], right[name]) for name in left)
