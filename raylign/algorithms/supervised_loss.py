"""The loss of supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor

from raylign.algorithms.loss import LossSum, check_inputs


def cross_entropy_loss(*, logprobs: Tensor) -> LossSum:
    """Compute the negative log-likelihood of the completion tokens, `L = -sum_t log p(y_t | x, y_<t)`.

    logprobs `[M]` over completion tokens, in nats, with gradient. For the SFT term of a preference loss, pass the `[P]`
    means over the tokens of the chosen completions, so that all pairs have the same weight (Pang et al. 2024, eq. 1).

    Metrics, sums over tokens (over pairs, of means):
        sft/nll  the loss itself, nats; exp of its mean is the perplexity

    Raises:
        ValueError: logprobs are of half precision.
    """
    check_inputs(logprobs=logprobs)
    total = -logprobs.sum()
    return LossSum(total, {"sft/nll": total.detach()})
