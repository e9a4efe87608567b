"""The rows of a run, read and checked before any actor exists, so that a bad file costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylign.config import DataConfig, RewardModelConfig, RunConfig
from raylign.config.traits import Reads
from raylign.data import load_labelled, load_pairs, load_prompts, load_sequences
from raylign.errors import UserError
from raylign.models.description import context_length, load_tokenizer
from raylign.types import Dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_inputs(config: RunConfig) -> tuple[Dataset, Dataset | None]:
    """Return training rows, and held-out rows if there is an evaluation.

    Raises:
        DataError, UserError: one line with file:line or dotted path, and the fix.
    """
    tokenizer = load_tokenizer(config.model)
    context = context_length(config.model)
    train = _load(config.algorithm.reads, config.data, tokenizer, config, context)
    if config.evaluation is None:
        return train, None
    return train, _load(config.algorithm.held_out_reads, config.evaluation.data, tokenizer, config, context)


def prompt_limit(config: RunConfig, context: int) -> int:
    """Return the length of the longest prompt that leaves room for a completion."""
    context = min(context, config.rollout.max_model_len or context)
    limit = context - config.rollout.sampling.max_tokens
    if limit < 1:
        raise UserError(
            f"rollout.sampling.max_tokens: {config.rollout.sampling.max_tokens} leaves no room for a prompt in the "
            f"context of {context} tokens; lower it"
        )
    return limit


def _load(
    kind: Reads, data: DataConfig, tokenizer: PreTrainedTokenizerBase, config: RunConfig, context: int
) -> Dataset:
    match kind:
        case "prompts":
            return load_prompts(data, tokenizer, prompt_limit(config, context))
        case "sequences":
            return load_sequences(data, tokenizer, context)
        case "labelled":
            return load_labelled(data, tokenizer, context)
        case _:
            margin = isinstance(config.algorithm, RewardModelConfig) and config.algorithm.margin
            return load_pairs(data, tokenizer, context, margin)
