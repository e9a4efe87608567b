"""Forward passes on right-padded rows, with heads applied only where they are needed.

No attention mask is passed: in a causal model a token never sees the tokens to its right, so padding on the right
changes nothing, and attention takes its fastest path.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


def completion_hidden(model: PreTrainedModel, tokens: Tensor, completion_mask: Tensor) -> Tensor:
    """Return the hidden states from which the completion tokens are predicted.

    Args:
        tokens: [N, L] right-padded ids.
        completion_mask: [N, L] bool; column 0 is never True.
    Returns:
        [M, H], M completion tokens in row-major order: the state *before* each of them.
    """
    hidden = model.base_model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    return hidden[completion_mask[:, 1:]]


def completion_logits(model: PreTrainedModel, tokens: Tensor, completion_mask: Tensor) -> Tensor:
    """Return the logits of the completion tokens: [M, V], M as in `completion_hidden`."""
    return _whole_pass(_logits, model, tokens, completion_mask)


def completion_values(model: PreTrainedModel, tokens: Tensor, completion_mask: Tensor) -> Tensor:
    """Return the values of the states in which the completion tokens are chosen: [M] fp32."""
    return _whole_pass(_values, model, tokens, completion_mask)


def sequence_scores(model: PreTrainedModel, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return the score of each row, read at its last real token: [N] fp32.

    Args:
        tokens: [N, L] right-padded ids.
        lengths: [N] number of real tokens in each row.
    """
    return _whole_pass(_scores, model, tokens, lengths)


def _whole_pass(compute: Callable[..., Tensor], model: PreTrainedModel, *args: Tensor) -> Tensor:
    """Call `compute(model, *args)`; FSDP keeps the weights outside the blocks gathered while `model.compute` runs."""
    if isinstance(model, FSDPModule):
        return model.compute(compute, *args)  # pyright: ignore[reportCallIssue]  (models/shard.py adds it)
    return compute(model, *args)


def _logits(model: PreTrainedModel, tokens: Tensor, completion_mask: Tensor) -> Tensor:
    head = model.get_output_embeddings()
    assert head is not None, "a language model has an output head"
    logits = head(completion_hidden(model, tokens, completion_mask))
    config = model.config.get_text_config().to_dict()
    if config.get("logits_scaling"):  # Granite
        logits = logits / config["logits_scaling"]
    if config.get("logit_scale"):  # Cohere
        logits = logits * config["logit_scale"]
    if config.get("final_logit_softcapping"):  # Gemma
        cap = config["final_logit_softcapping"]
        logits = cap * torch.tanh(logits / cap)
    return logits


def _values(model: PreTrainedModel, tokens: Tensor, completion_mask: Tensor) -> Tensor:
    return _scalar(model, completion_hidden(model, tokens, completion_mask))


def _scores(model: PreTrainedModel, tokens: Tensor, lengths: Tensor) -> Tensor:
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
    return _scalar(model, last)


def _scalar(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the score head in the precision of its weights, not autocast's: a wide sum loses too much in bfloat16."""
    head = model.get_submodule("score")
    with torch.autocast(hidden.device.type, enabled=False):
        scalar = head(hidden.to(next(head.parameters()).dtype)).squeeze(-1).float()
    return scalar.clone()  # not a view of another tensor: FSDP waits for the gradient of exactly this tensor
