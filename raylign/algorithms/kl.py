"""Estimators of the KL divergence between the policy and the reference."""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0  # exp(20) = 5e8: far outside any trust region, far inside float32


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Return one-sample estimates of `KL(policy || reference)`, in nats, for tokens sampled from the policy.

    With `d = log policy - log reference` of the sampled token (Schulman 2020, http://joschu.net/blog/kl-approx.html):

        k1 = d                     unbiased, may be negative, high variance
        k2 = d^2 / 2               biased, never negative
        k3 = exp(-d) - 1 + d       unbiased, never negative; d is cut at -20, where the gradient is 0

    logprobs and ref_logprobs, in nats, may have any shape, the same for both; the result has it too. If logprobs carry
    gradient, its expectation over samples of the policy is 0 for k1, the gradient of KL(policy || reference) for k2,
    and the gradient of KL(reference || policy) for k3. So as a loss k1 has no effect, and k2 is exact for one token.
    None of them covers the effect of a token on the KL of later tokens; only returns that include the KL penalty do
    (`shape_rewards`).
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
