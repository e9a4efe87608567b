"""The clipped policy objective of PPO."""

from __future__ import annotations

import torch
from torch import Tensor

from raylign.algorithms.kl import MAX_LOG_RATIO, kl_estimate
from raylign.algorithms.loss import LossSum, check_inputs


def ppo_policy_loss(
    *, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float, entropy: Tensor | None = None
) -> LossSum:
    """Clipped surrogate objective (Schulman et al. 2017, eq. 7), negated and summed over tokens.

        ratio = exp(logprobs - old_logprobs)
        L     = -sum_t min(ratio_t A_t, clip(ratio_t, 1 - clip_range, 1 + clip_range) A_t)

    All `[M]` over completion tokens; logprobs in nats and with gradient. The log ratio is cut at +-20, where the
    gradient is 0: one absurd token cannot overflow the step. `entropy` is a metric, not a bonus.

    Metrics, sums over tokens:
        policy/clip_fraction  tokens whose gradient the clip removed (not every ratio outside of the range)
        policy/approx_kl      k3 estimate of KL(old || new), nats
        policy/ratio          the ratio; its mean stays near 1 while the policy is near the old one
        policy/entropy        nats, if given

    Raises:
        ValueError: shapes differ or a tensor is of half precision.
    """
    check_inputs(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    log_ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    gain = ratio * advantages
    clipped_gain = ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    total = -torch.minimum(gain, clipped_gain).sum()

    with torch.no_grad():
        metrics = {
            "policy/clip_fraction": (clipped_gain < gain).to(gain.dtype).sum(),
            "policy/approx_kl": kl_estimate(old_logprobs, logprobs, "k3").sum(),
            "policy/ratio": ratio.sum(),
        }
        if entropy is not None:
            check_inputs(logprobs=logprobs, entropy=entropy)
            metrics["policy/entropy"] = entropy.sum()
    return LossSum(total, metrics)
