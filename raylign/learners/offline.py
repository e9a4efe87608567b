"""Functions shared by the learners of fixed datasets: padded rows, logprobs of completions, a step on pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from raylign.algorithms.logprobs import sequence_sums, token_logprobs
from raylign.algorithms.loss import LossSum
from raylign.data.batching import micro_batches
from raylign.learners.learner import Learner
from raylign.models.forward import completion_logits
from raylign.types import FloatArray, LongArray, PairSet, SequenceSet

RefLogprobs = tuple[FloatArray, FloatArray]
"""Sums of completion logprobs under the reference, for both `sides` of a dataset: [N] each, nats."""


def by_length(learner: Learner, rows: LongArray, lengths: LongArray, rows_per_item: int = 1) -> list[LongArray]:
    """Split the given rows into micro-batches of similar length; `lengths` [N] covers the whole dataset."""
    budget, ranks = learner.spec.micro_batch_tokens, learner.ranks.data_size
    return [rows[group] for group in micro_batches(lengths[rows], budget, rows_per_item, min_groups=ranks)]


def pair_lengths(data: PairSet) -> LongArray:
    """Return the number of tokens of the longer side of each pair: [N]."""
    return np.maximum(data.chosen.tokens.lengths, data.rejected.tokens.lengths)


def completion_tokens(sides: Sequence[SequenceSet], rows: LongArray) -> int:
    """Count the learned tokens of the given rows on all sides."""
    return int(sum(side.completion_mask[int(row)].sum() for side in sides for row in rows))


def padded(data: SequenceSet, rows: LongArray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens [n, L], completion mask [n, L] and lengths [n] of the given rows."""
    tokens = torch.from_numpy(data.tokens.padded(rows)).to(device, torch.long)
    mask = torch.from_numpy(data.completion_mask.padded(rows, False)).to(device)
    return tokens, mask, torch.from_numpy(data.tokens.lengths[rows]).to(device)


def padded_pairs(data: PairSet, rows: LongArray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, completion mask and lengths of [chosen rows; rejected rows], 2n rows in all."""
    sides = [padded(side, rows, device) for side in data.sides]
    width = max(tokens.shape[1] for tokens, _, _ in sides)
    tokens, mask = (
        torch.cat([torch.nn.functional.pad(side[i], (0, width - side[i].shape[1])) for side in sides]) for i in (0, 1)
    )
    return tokens, mask, torch.cat([side[2] for side in sides])


def completion_logprobs(model: PreTrainedModel, tokens: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum the logprobs of each row's completion, with gradient: [n], nats."""
    logprobs = token_logprobs(completion_logits(model, tokens, mask), tokens[mask], temperature=temperature).logprobs
    return sequence_sums(logprobs, mask.nonzero()[:, 0], len(tokens))


def update_on_pairs(
    learner: Learner, data: PairSet, rows: LongArray, loss: Callable[[LongArray], LossSum]
) -> dict[str, float]:
    """Take one optimizer step on the given pairs of a dataset; `loss` returns the sums over a micro-batch of them."""
    with learner.timed("time/update_policy"):
        groups = by_length(learner, rows, pair_lengths(data), rows_per_item=2)
        metrics = learner.optimizer_step(groups, len(rows), loss)
        return metrics | {"tokens/trained": float(completion_tokens(data.sides, rows))}


def on_device(array: FloatArray, device: torch.device) -> Tensor:
    """Copy an array to the device."""
    return torch.from_numpy(np.array(array)).to(device)  # a copy, because the object store is read-only
