"""Loss of Kahneman-Tversky optimisation (KTO) over single completions, each labelled desirable or not."""

from __future__ import annotations

import torch
from torch import Tensor

from raylign.algorithms.loss import LossSum, check_inputs


def kto_loss(
    *,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    desirable: Tensor,
    kl: Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> LossSum:
    """Compute the loss of Kahneman-Tversky optimisation (Ethayarajh et al. 2024, eq. 8), summed over rows.

        r     = log policy(y|x) - log reference(y|x)
        value = sigmoid(beta (r - kl)) if desirable, else sigmoid(beta (kl - r))
        L     = sum_rows weight * (1 - value)

    logprobs and ref_logprobs `[N]`, of whole completions (sums over tokens), in nats, the policy's with gradient;
    desirable `[N]` bool; kl a scalar without gradient: `kto_reference_point` of the whole optimizer step.

    Metrics, sums over rows. To get the mean over one kind of row, divide its sum by the number of such rows:
        kto/num_desirable       kto/num_undesirable
        kto/desirable_reward    kto/undesirable_reward, beta * r of the rows of that kind
        logprobs/desirable      logprobs/undesirable, of the policy
        kto/accuracy            rows on the right side of the reference point; a row on the point counts one half
        kto/kl                  kl, once for every row

    Raises:
        ValueError: shapes differ, a tensor is of half precision, desirable is not bool, or kl is not a scalar without
            gradient.
    """
    check_inputs(logprobs=logprobs, ref_logprobs=ref_logprobs)
    if desirable.dtype != torch.bool or desirable.shape != logprobs.shape:
        raise ValueError(
            f"desirable is {desirable.dtype} {list(desirable.shape)}; it must be torch.bool {list(logprobs.shape)}"
        )
    if kl.ndim or kl.requires_grad:
        raise ValueError(
            f"kl has shape {list(kl.shape)} and requires_grad={kl.requires_grad}; it must be one number without "
            "gradient: pass the result of kto_reference_point"
        )
    log_ratio = logprobs - ref_logprobs
    gain = beta * (log_ratio - kl) * torch.where(desirable, 1.0, -1.0)
    lost = torch.sigmoid(-gain)  # 1 - sigmoid(gain), which float32 would round to 0 above a gain of 17
    losses = torch.where(desirable, desirable_weight * lost, undesirable_weight * lost)

    reward = beta * log_ratio
    metrics = {
        "kto/num_desirable": desirable.to(reward.dtype),
        "kto/num_undesirable": (~desirable).to(reward.dtype),
        "kto/desirable_reward": reward * desirable,
        "kto/undesirable_reward": reward * ~desirable,
        "logprobs/desirable": logprobs * desirable,
        "logprobs/undesirable": logprobs * ~desirable,
        "kto/accuracy": torch.heaviside(gain.detach(), gain.new_tensor(0.5)),
        "kto/kl": kl.expand_as(reward),
    }
    return LossSum(losses.sum(), {name: values.detach().sum() for name, values in metrics.items()})


def kto_reference_point(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return the point from which KTO measures gains and losses: an estimate of KL(policy || reference), in nats.

        kl = max(0, mean over rows of (log policy(y'|x) - log reference(y'|x)))

    y' is the completion of *another* prompt of the step (Ethayarajh et al. 2024, section 4), because the loss moves the
    completions that belong to the prompt. Both `[N]`, of the whole optimizer step: the mean of a micro-batch would make
    the loss depend on the split. -> scalar, detached.

    Raises:
        ValueError: shapes differ, a tensor is of half precision, or there are no rows.

    >>> kto_reference_point(torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -4.5]))
    tensor(0.2500)
    """
    check_inputs(logprobs=logprobs, ref_logprobs=ref_logprobs)
    if not len(logprobs):
        raise ValueError("logprobs has no rows; the reference point is a mean over the rows of the optimizer step")
    return (logprobs - ref_logprobs).detach().mean().clamp(min=0)
