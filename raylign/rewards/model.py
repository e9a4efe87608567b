"""Scores from a reward model: a sequence-classification model with one output."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from raylign.data.batching import default_pass_tokens, micro_batches
from raylign.errors import UserError, one_line
from raylign.models.description import open_tokenizer
from raylign.models.forward import sequence_scores
from raylign.models.infer import autocast
from raylign.models.load import DTYPES
from raylign.types import PromptSet, Ragged, RolloutBatch, Scores


class ModelSource:
    """A reward source that reads a reward model at the last real token of each row.

    That token is located by length, not by looking for pad, which may equal eos. A reward model with the policy's
    vocabulary gets the policy's tokens unchanged. Otherwise the text without special tokens is tokenised again, and the
    reward model's eos is added to completions that the policy finished.
    """

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int | None = None,
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
        trust_remote_code: bool = False,
        place: str = "reward.path",
        num_threads: int | None = None,
    ) -> None:
        """Load the reward model.

        Args:
            path: folder or hub name of model and tokenizer.
            tokenizer: tokenizer of the policy.
            batch_tokens: number of padded tokens in one forward pass; by default it depends on the device.
            compute_dtype: bfloat16 turns autocast on.
            place: dotted config path, for error messages.
            num_threads: number of torch threads; torch's default if None.
        Raises:
            UserError: the model cannot be loaded, or is not a trained model with one score per sequence.
        """
        if num_threads:
            torch.set_num_threads(num_threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = _load_model(path, trust_remote_code, place, self._device)
        self._policy_tokenizer = tokenizer
        own = open_tokenizer(path, trust_remote_code, place=place)
        self._own_tokenizer = None if own.get_vocab() == tokenizer.get_vocab() else own
        self._batch_tokens = batch_tokens or default_pass_tokens(self._device.type == "cuda")
        self._compute_dtype = DTYPES[compute_dtype]

    def score(self, batch: RolloutBatch, prompts: PromptSet) -> Scores:
        """Score every row of a batch by the model: [N]; a score that is not finite is invalid. `prompts` is ignored."""
        rows = self._rows(batch)
        lengths = rows.lengths
        values = np.full(len(batch), np.nan, dtype=np.float32)
        with torch.inference_mode(), autocast(self._device, self._compute_dtype):
            for group in micro_batches(lengths, self._batch_tokens):
                tokens = torch.from_numpy(rows.padded(group)).to(self._device, torch.long)
                scores = sequence_scores(self._model, tokens, torch.from_numpy(lengths[group]).to(self._device))
                values[group] = scores.cpu().numpy()
        return Scores(values, np.isfinite(values))

    def _rows(self, batch: RolloutBatch) -> Ragged:
        if self._own_tokenizer is None:
            return Ragged.from_rows((row[:n] for row, n in zip(batch.tokens, batch.lengths, strict=True)), np.int32)
        eos = self._own_tokenizer.eos_token_id
        rows = []
        for row, length, finished in zip(batch.tokens, batch.lengths, batch.finished, strict=True):
            # Prompt and completion together: separately, a word-level tokenizer would lose the space between them.
            text = self._policy_tokenizer.decode(row[:length].tolist(), skip_special_tokens=True)
            ids = self._own_tokenizer(text)["input_ids"]
            rows.append([*ids, eos] if finished and eos is not None and ids[-1:] != [eos] else ids)
        return Ragged.from_rows(rows, np.int32)


def _load_model(path: str, trust_remote_code: bool, place: str, device: torch.device) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if config.num_labels != 1:
            raise UserError(
                f"{place}: {path} has {config.num_labels} outputs, but a reward model has 1; "
                "train one with algorithm.name: reward_model"
            )
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=torch.float32, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError) as e:
        raise UserError(f"{place}: cannot load {path}: {one_line(e)}; check the path") from e
    if "score" not in dict(model.named_children()):
        raise UserError(f"{place}: {type(model).__name__} has no score head over tokens; use a decoder reward model")
    if info["missing_keys"]:
        # transformers draws missing weights at random with only a warning; such scores would be meaningless.
        missing = min(info["missing_keys"])
        raise UserError(f"{place}: {path} lacks the weights {missing}; give a trained reward model")
    return model.eval().to(device)
