"""The loss of supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor

from raylign.algorithms.loss import LossSum, check_inputs


def cross_entropy_loss(*, logprobs: Tensor) -> LossSum:
    """Negative log-likelihood of the completion tokens: `L = -sum_t log p(y_t | x, y_<t)`.

    logprobs `[M]` over completion tokens, in nats, with gradient. As the SFT term of a preference loss it takes the
    `[P]` means over the tokens of the chosen completions, so that a pair weighs the same whatever its length (Pang et
    al. 2024, eq. 1).

    Metrics, sums over tokens (over pairs, of means):
        sft/nll  the loss itself, nats; exp of its mean is the perplexity

    Raises:
        ValueError: logprobs are of half precision.
    """
    check_inputs(logprobs=logprobs)
    total = -logprobs.sum()
    return LossSum(total, {"sft/nll": total.detach()})
