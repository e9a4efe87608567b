"""The result of every loss: sums, so that the split of a batch changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossSum:
    """A loss and its metrics, summed over the elements of one micro-batch (tokens, rows or pairs).

    With means over micro-batches, the weight of a token would depend on the other tokens of its micro-batch. So
    nothing is divided here: the learner adds up micro-batches and data-parallel ranks and divides the sum by the number
    of elements in the whole optimizer step.

    Example: two micro-batches of cross-entropy, with 3 tokens and with 1, have totals 1.5 and 0.9; the loss of the step
    is 2.4 / 4.
    """

    total: Tensor  # scalar, carries the gradient
    metrics: dict[str, Tensor]  # scalars over the same elements, detached


def check_inputs(**tensors: Tensor) -> None:
    """Refuse tensors that torch would broadcast or round without a warning.

    Raises:
        ValueError: shapes differ (`[M]` against `[M, 1]` would broadcast to `[M, M]`), or a tensor is not float32
            or float64 (a sum over thousands of tokens does not fit the 8 bits of a bfloat16 mantissa).
    """
    (first, head), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} is {tensor.dtype}; losses are summed in float32: pass {name}.float()")
        if tensor.shape != head.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, but {first} has {list(head.shape)}; they must agree"
            )
