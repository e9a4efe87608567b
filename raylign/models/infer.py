"""Logprobs and values of a whole batch, without gradients, in micro-batches sorted by length."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from raylign.algorithms.logprobs import token_logprobs
from raylign.data.batching import micro_batches
from raylign.models.forward import completion_logits, completion_values
from raylign.models.ranks import ALONE, Ranks
from raylign.types import BoolArray, FloatArray, IntArray, LongArray


def batch_logprobs(
    model: PreTrainedModel,
    tokens: IntArray,
    lengths: LongArray,
    completion_mask: BoolArray,
    *,
    temperature: float,
    max_tokens: int,
    compute_dtype: torch.dtype,
    ranks: Ranks = ALONE,
) -> FloatArray:
    """Compute the logprobs of the completion tokens: [N, L] fp32, nats, 0 outside the mask.

    Args:
        tokens: [N, L] right-padded; lengths: [N]; completion_mask: [N, L].
        temperature: softmax temperature that divides the logits.
        max_tokens: number of padded tokens in one forward pass.
        ranks: if the model is split over several ranks, each computes its share, and all return the whole result.
    """

    def logprobs(rows: Tensor, mask: Tensor) -> Tensor:
        logits = completion_logits(model, rows, mask)
        return token_logprobs(logits, rows[:, 1:][mask[:, 1:]], temperature=temperature, with_entropy=False).logprobs

    return _per_token(logprobs, model, tokens, lengths, completion_mask, max_tokens, compute_dtype, ranks)


def batch_values(
    model: PreTrainedModel,
    tokens: IntArray,
    lengths: LongArray,
    completion_mask: BoolArray,
    *,
    max_tokens: int,
    compute_dtype: torch.dtype,
    ranks: Ranks = ALONE,
) -> FloatArray:
    """Compute the values of the states before the completion tokens: [N, L] fp32, 0 outside the mask.

    The arguments are those of `batch_logprobs`.
    """

    def values(rows: Tensor, mask: Tensor) -> Tensor:
        return completion_values(model, rows, mask)

    return _per_token(values, model, tokens, lengths, completion_mask, max_tokens, compute_dtype, ranks)


def _per_token(
    compute: Callable[[Tensor, Tensor], Tensor],
    model: PreTrainedModel,
    tokens: IntArray,
    lengths: LongArray,
    completion_mask: BoolArray,
    max_tokens: int,
    compute_dtype: torch.dtype,
    ranks: Ranks,
) -> FloatArray:
    device = compute_device(model, ranks)
    out = np.zeros(tokens.shape, dtype=np.float32)
    learning = model.training
    model.eval()
    with no_gradients(ranks), autocast(device, compute_dtype):
        for group, counts in ranks.share_scoring(micro_batches(lengths, max_tokens, min_groups=ranks.min_groups)):
            width = int(lengths[group].max())
            mask = completion_mask[group, :width]
            rows = torch.from_numpy(tokens[group, :width]).to(device, torch.long)
            block = np.zeros(mask.shape, dtype=np.float32)
            block[mask] = compute(rows, torch.from_numpy(mask).to(device)).float().cpu().numpy()
            if counts:
                out[group, :width] = block
    model.train(learning)
    return ranks.sum_over_data(out)


def compute_device(model: PreTrainedModel, ranks: Ranks) -> torch.device:
    """Return the device that computes passes, which differs from the device of offloaded weights."""
    return next(model.parameters()).device if ranks.mesh is None else torch.device(ranks.mesh.device_type)


def no_gradients(ranks: Ranks) -> AbstractContextManager[Any]:
    """Return a context for passes without gradients.

    Not inference mode under FSDP: it reuses the tensors that it gathers into, and could not train on them later.
    """
    return torch.inference_mode() if ranks.mesh is None else torch.no_grad()


def autocast(device: torch.device, compute_dtype: torch.dtype) -> torch.autocast:
    """Return the autocast context of a compute dtype: bfloat16 matrix products, or none for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=compute_dtype == torch.bfloat16)
