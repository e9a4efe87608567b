"""The clipped policy-gradient loss, shared by all online algorithms that use a policy ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from raylign.algorithms.kl import MAX_LOG_RATIO, KLEstimator, kl_estimate
from raylign.algorithms.loss import LossSum, check_inputs


def clipped_policy_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor | None = None,
    importance: Tensor | None = None,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
) -> LossSum:
    """Compute the clipped surrogate objective with KL and entropy terms, negated and summed over tokens.

        ratio  = exp(logprobs - old_logprobs)
        gain   = min(ratio A, clip(ratio, 1 - clip_range, 1 + clip_range_high) A)    Schulman et al. 2017, eq. 7
        gain   = max(gain, dual_clip * A)  where A < 0, if dual_clip is set          Ye et al. 2020
        L      = sum_t weights_t * (-importance_t * gain_t + kl_coef * KL_t - entropy_coef * H_t)

    All tensors are `[M]` over completion tokens, logprobs and entropy in nats; logprobs carry gradient, and so does
    entropy if entropy_coef > 0 (`token_logprobs(..., entropy_gradient=True)`). clip_range_high defaults to clip_range
    (DAPO, Yu et al. 2025, eq. 10, sets it higher). dual_clip > 1 is the largest loss of a token in units of |A|. The
    weights come from `aggregate.token_weights`, importance from `importance.importance_weights`; both are 1 if None.
    KL_t is `kl_estimate(logprobs, ref_logprobs, kl_estimator)` with gradient (Shao et al. 2024, eqs. 3-4).
    The log ratio is cut at +-20, where the gradient is 0, so that one extreme token cannot overflow the step.

    Metrics, sums over tokens, without the weights:
        policy/clip_fraction       tokens whose gradient the clip removed (not every ratio outside the range)
        policy/approx_kl           k3 estimate of KL(old || new), nats
        policy/ratio               the ratio; its mean stays near 1 while the policy is close to the old policy
        policy/entropy             nats, if given
        policy/dual_clip_fraction  tokens whose gradient the dual clip removed, if dual_clip is set
        policy/importance          the importance weights, if given
        policy/kl_loss             KL_t, nats, without its coefficient, if ref_logprobs are given

    Raises:
        ValueError: shapes differ, a tensor is of half precision, or a coefficient is set but its tensor is missing or
            has no gradient.
    """
    optional = {"weights": weights, "importance": importance, "entropy": entropy, "ref_logprobs": ref_logprobs}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    check_inputs(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, **given)
    if kl_coef and ref_logprobs is None:
        raise ValueError(f"kl_coef is {kl_coef}, but ref_logprobs are missing")
    if entropy_coef and (entropy is None or (logprobs.requires_grad and not entropy.requires_grad)):
        raise ValueError(
            f"entropy_coef is {entropy_coef}, but the entropy {'is missing' if entropy is None else 'has no gradient'}; "
            "ask token_logprobs for with_entropy=True, entropy_gradient=True"
        )

    log_ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    plain = ratio * advantages
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + high) * advantages
    gain = torch.minimum(plain, clipped)
    metrics = {
        "policy/clip_fraction": _count(clipped < plain, ratio),
        "policy/approx_kl": kl_estimate(old_logprobs, logprobs.detach(), "k3").sum(),
        "policy/ratio": ratio.detach().sum(),
    }
    if dual_clip is not None:
        floor = dual_clip * advantages
        bound = (advantages < 0) & (gain < floor)
        gain = torch.where(bound, floor, gain)
        metrics["policy/dual_clip_fraction"] = _count(bound, ratio)
    loss = -gain
    if importance is not None:
        loss = importance * loss
        metrics["policy/importance"] = importance.detach().sum()
    if ref_logprobs is not None:
        kl = kl_estimate(logprobs, ref_logprobs, kl_estimator)
        loss = loss + kl_coef * kl
        metrics["policy/kl_loss"] = kl.detach().sum()
    if entropy is not None:
        loss = loss - entropy_coef * entropy
        metrics["policy/entropy"] = entropy.detach().sum()
    return LossSum((loss if weights is None else weights * loss).sum(), metrics)


def _count(where: Tensor, like: Tensor) -> Tensor:
    return where.to(like.dtype).sum()
