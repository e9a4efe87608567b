"""How far the policy is from the reference."""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: far outside any trust region, far inside float32


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """One-sample estimates of `KL(policy || reference)`, in nats, for tokens sampled from the policy.

    With `d = log policy - log reference` of the sampled token (Schulman 2020, http://joschu.net/blog/kl-approx.html):

        k1 = d                     unbiased, may be negative, high variance
        k2 = d^2 / 2               biased, never negative
        k3 = exp(-d) - 1 + d       unbiased, never negative; d is cut at -20, where the gradient is 0

    logprobs and ref_logprobs of any one shape, which is also the result's. With gradient in logprobs, the expected
    gradient over samples of the policy is: of k1, 0; of k2, that of KL(policy || reference); of k3, that of
    KL(reference || policy). So in a loss k1 holds nothing back and k2 is exact, for one token: what a token does to the
    KL of the tokens after it is in none of them, only in returns that are charged for the KL (`shape_rewards`).
    """
    log_ratio = logprobs - ref_logprobs
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return 0.5 * log_ratio.square()
        case "k3":
            cut = log_ratio.clamp(min=-MAX_LOG_RATIO)
            return torch.expm1(-cut) + cut  # expm1: d is mostly near 0
        case _:
            assert_never(estimator)
