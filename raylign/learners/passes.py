"""The update of an online learner: passes over the samples of a step, in minibatches, in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from raylign.algorithms.loss import LossSum
from raylign.config import OnlineConfig
from raylign.data.batching import micro_batches
from raylign.learners.learner import Learner
from raylign.types import LongArray


def run_passes(
    learner: Learner,
    algorithm: OnlineConfig,
    lengths: LongArray,
    normaliser: Callable[[LongArray], float],
    loss: Callable[[LongArray], LossSum],
    name: str,
    rows_per_item: int = 1,
    num_elements: Callable[[LongArray], float] | None = None,
) -> dict[str, float]:
    """Make `epochs` passes over the items of a step, in `minibatches` optimizer steps each; return mean metrics.

    Args:
        lengths: tokens of each item (row or pair): [N].
        normaliser: returns the divisor of a minibatch's loss, given its items; 0 skips the minibatch.
        loss: returns the sums over a micro-batch, given its items.
        num_elements: returns the divisor of a minibatch's metrics, if it is not the normaliser.
        name: prefix of `loss` and `optimizer/...` among the metrics.
    """
    steps: list[dict[str, Any]] = []
    for items in _minibatches(learner.shuffle, len(lengths), algorithm.epochs, algorithm.minibatches):
        divisor = normaliser(items)
        if divisor == 0:  # every score of the minibatch was invalid
            continue
        budget, ranks = learner.spec.micro_batch_tokens, learner.ranks.data_size
        groups = [items[g] for g in micro_batches(lengths[items], budget, rows_per_item, min_groups=ranks)]
        steps.append(learner.optimizer_step(groups, divisor, loss, num_elements and num_elements(items)))
    if not steps:
        return {}
    means = {key: float(np.mean([step[key] for step in steps])) for key in steps[0]}
    means["optimizer/skipped"] = steps[-1]["optimizer/skipped"]  # a running count, not a mean
    prefixed = {"loss", *(key for key in means if key.startswith("optimizer/"))}
    return {f"{name}/{key}" if key in prefixed else key: value for key, value in means.items()}


def _minibatches(shuffle: torch.Generator, num_items: int, epochs: int, minibatches: int) -> Iterator[LongArray]:
    for _ in range(epochs):
        yield from np.array_split(torch.randperm(num_items, generator=shuffle).numpy(), minibatches)
