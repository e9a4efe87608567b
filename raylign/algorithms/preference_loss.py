"""Losses over preference pairs: DPO and its variants, SimPO, CPO and ORPO (no reference), and a reward model's.

Each loss has a margin, by which the chosen completion wins. They differ in the definition of the margin and in the
function that makes it grow.
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raylign.algorithms.loss import LossSum, check_inputs

DPOLoss = Literal["sigmoid", "robust", "ipo", "hinge"]


def dpo_loss(
    *,
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    beta: float,
    loss: DPOLoss = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_probability: Tensor | None = None,
) -> LossSum:
    """Compute the loss of direct preference optimisation (DPO) or of a variant, summed over pairs.

        reward(y) = beta * (log policy(y|x) - log reference(y|x))
        m         = reward(chosen) - reward(rejected)

        sigmoid   -log sigmoid(m)                                              Rafailov et al. 2023, eq. 7
                  -(1 - e) log sigmoid(m) - e log sigmoid(-m)                  cDPO: Mitchell 2023
                  -p log sigmoid(m) - (1 - p) log sigmoid(-m)                  soft labels; cDPO is p = 1 - e
        robust    (-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e)    Chowdhury et al. 2024
        ipo       (m / beta - 1 / (2 beta))^2                                  Azar et al. 2023, eq. 17
        hinge     max(0, 1 - m)                                                SLiC, as in Liu et al. 2024 (RSO)

    The four logprobs are `[P]`, in nats: sums over the tokens of a completion, or means if the caller normalises by
    length. Those of the policy carry gradient.

    label_smoothing: e, the assumed share of wrong labels (sigmoid and robust).
    chosen_probability: p `[P]` in [0, 1], the probability that the chosen completion is better (sigmoid); 1 if None.
        If both are given, a label is right with probability p (1 - e) + (1 - p) e.

    Metrics, sums over pairs; with `chosen_probability`, their expectation over which completion is better:
        dpo/accuracy         pairs with the larger implicit reward on the chosen side; a tie counts one half
        dpo/margin           reward(chosen) - reward(rejected)
        dpo/chosen_reward    dpo/rejected_reward
        logprobs/chosen      logprobs/rejected, of the policy

    Raises:
        ValueError: shapes differ, a tensor is of half precision, a probability is outside its range, or an option is
            set that the chosen loss does not use.
    """
    check_inputs(
        chosen_logprobs=chosen_logprobs,
        rejected_logprobs=rejected_logprobs,
        ref_chosen_logprobs=ref_chosen_logprobs,
        ref_rejected_logprobs=ref_rejected_logprobs,
    )
    _check_labels(chosen_logprobs, loss, label_smoothing, chosen_probability)
    chosen_log_ratio = chosen_logprobs - ref_chosen_logprobs
    rejected_log_ratio = rejected_logprobs - ref_rejected_logprobs
    difference = chosen_log_ratio - rejected_log_ratio
    margin = beta * difference
    p = torch.ones_like(margin) if chosen_probability is None else chosen_probability
    e = label_smoothing
    match loss:
        case "sigmoid":
            right = p * (1 - e) + (1 - p) * e
            losses = -right * logsigmoid(margin) - (1 - right) * logsigmoid(-margin)
        case "robust":
            losses = (-(1 - e) * logsigmoid(margin) + e * logsigmoid(-margin)) / (1 - 2 * e)
        case "ipo":
            losses = (difference - 1 / (2 * beta)).square()
        case "hinge":
            losses = torch.relu(1 - margin)
        case _:
            assert_never(loss)

    def expected(chosen: Tensor, rejected: Tensor) -> Tensor:
        return p * chosen + (1 - p) * rejected

    wins = _wins(margin)
    metrics = {
        "dpo/accuracy": expected(wins, 1 - wins),
        "dpo/margin": expected(margin, -margin),
        "dpo/chosen_reward": beta * expected(chosen_log_ratio, rejected_log_ratio),
        "dpo/rejected_reward": beta * expected(rejected_log_ratio, chosen_log_ratio),
        "logprobs/chosen": expected(chosen_logprobs, rejected_logprobs),
        "logprobs/rejected": expected(rejected_logprobs, chosen_logprobs),
    }
    return LossSum(losses.sum(), _summed(metrics))


def simpo_loss(*, chosen_logprobs: Tensor, rejected_logprobs: Tensor, beta: float, gamma: float) -> LossSum:
    """Compute the loss of simple preference optimisation (SimPO; Meng et al. 2024, eq. 6), summed over pairs.

    SimPO needs no reference.

        reward(y) = beta * log policy(y|x) / |y|
        L         = -sum_pairs log sigmoid(reward(chosen) - reward(rejected) - gamma)

    Both `[P]`, means over the tokens of a completion, in nats, with gradient.

    Metrics, sums over pairs:
        simpo/accuracy         pairs with the larger reward on the chosen side, gamma ignored; a tie counts one half
        simpo/margin           reward(chosen) - reward(rejected), gamma not subtracted
        simpo/chosen_reward    simpo/rejected_reward
        logprobs/chosen        logprobs/rejected, per token

    Raises:
        ValueError: shapes differ or a tensor is of half precision.
    """
    check_inputs(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
    margin = beta * (chosen_logprobs - rejected_logprobs)
    metrics = {
        "simpo/accuracy": _wins(margin),
        "simpo/margin": margin,
        "simpo/chosen_reward": beta * chosen_logprobs,
        "simpo/rejected_reward": beta * rejected_logprobs,
        "logprobs/chosen": chosen_logprobs,
        "logprobs/rejected": rejected_logprobs,
    }
    return LossSum(-logsigmoid(margin - gamma).sum(), _summed(metrics))


def cpo_loss(
    *, chosen_logprobs: Tensor, rejected_logprobs: Tensor, beta: float, label_smoothing: float = 0.0
) -> LossSum:
    """Compute the preference term of contrastive preference optimisation (CPO; Xu et al. 2024), summed over pairs.

    CPO is DPO with a uniform reference, so it needs none. With label smoothing s (Mitchell 2023):

        reward(y) = beta * log policy(y|x)
        margin    = reward(chosen) - reward(rejected)
        L         = -sum_pairs (1 - s) log sigmoid(margin) + s log sigmoid(-margin)

    Both `[P]`, sums over the tokens of a completion, in nats, with gradient. The other term of the method, the negative
    log-likelihood of the chosen completion, is `cross_entropy_loss`.

    Metrics, sums over pairs:
        cpo/accuracy         pairs with the larger reward on the chosen side; a tie counts one half
        cpo/margin           reward(chosen) - reward(rejected)
        cpo/chosen_reward    cpo/rejected_reward
        logprobs/chosen      logprobs/rejected

    Raises:
        ValueError: shapes differ, a tensor is of half precision, or `label_smoothing` is outside [0, 0.5).
    """
    check_inputs(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
    _check_labels(chosen_logprobs, "sigmoid", label_smoothing, None)
    margin = beta * (chosen_logprobs - rejected_logprobs)
    losses = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    metrics = {
        "cpo/accuracy": _wins(margin),
        "cpo/margin": margin,
        "cpo/chosen_reward": beta * chosen_logprobs,
        "cpo/rejected_reward": beta * rejected_logprobs,
        "logprobs/chosen": chosen_logprobs,
        "logprobs/rejected": rejected_logprobs,
    }
    return LossSum(losses.sum(), _summed(metrics))


def orpo_loss(*, chosen_logprobs: Tensor, rejected_logprobs: Tensor, beta: float) -> LossSum:
    """Compute the odds-ratio term of the ORPO loss (Hong et al. 2024, eqs. 4, 6 and 7), summed over pairs.

    ORPO needs no reference.

        p(y)        = exp(log policy(y|x) / |y|)
        log odds(y) = log p(y) - log(1 - p(y))
        L           = -beta sum_pairs log sigmoid(log odds(chosen) - log odds(rejected))

    Both `[P]`, means over the tokens of a completion, in nats, with gradient. The other term of the method, the
    negative log-likelihood of the chosen completion, is `cross_entropy_loss`.

    Metrics, sums over pairs:
        orpo/accuracy      pairs with the larger odds on the chosen side; a tie counts one half
        orpo/margin        log odds(chosen) - log odds(rejected)
        logprobs/chosen    logprobs/rejected, per token

    Raises:
        ValueError: shapes differ or a tensor is of half precision.
    """
    check_inputs(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
    margin = _log_odds(chosen_logprobs) - _log_odds(rejected_logprobs)
    metrics = {
        "orpo/accuracy": _wins(margin),
        "orpo/margin": margin,
        "logprobs/chosen": chosen_logprobs,
        "logprobs/rejected": rejected_logprobs,
    }
    return LossSum(-beta * logsigmoid(margin).sum(), _summed(metrics))


def bradley_terry_loss(*, chosen_scores: Tensor, rejected_scores: Tensor, margin: Tensor | None = None) -> LossSum:
    """Compute the negative log-likelihood of preferences under a reward model, summed over pairs.

        L = -sum_pairs log sigmoid(score(chosen) - score(rejected) - margin)

    Ouyang et al. 2022, eq. 1, with K = 2; the margin is from Touvron et al. 2023, eq. 2.

    Scores `[P]`, with gradient; margin `[P]`, by how much chosen should win, in units of the score; 0 if None.

    Metrics, sums over pairs; the required margin is not subtracted:
        reward_model/accuracy      pairs with the larger score on the chosen side; a tie counts one half
        reward_model/margin        score(chosen) - score(rejected)
        reward_model/chosen_score

    Raises:
        ValueError: shapes differ or a tensor is of half precision.
    """
    required = torch.zeros_like(chosen_scores) if margin is None else margin
    check_inputs(chosen_scores=chosen_scores, rejected_scores=rejected_scores, margin=required)
    difference = chosen_scores - rejected_scores
    metrics = {
        "reward_model/accuracy": _wins(difference),
        "reward_model/margin": difference,
        "reward_model/chosen_score": chosen_scores,
    }
    return LossSum(-logsigmoid(difference - required).sum(), _summed(metrics))


def _check_labels(like: Tensor, loss: DPOLoss, label_smoothing: float, chosen_probability: Tensor | None) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 0.5)")
    if label_smoothing > 0 and loss in ("ipo", "hinge"):
        raise ValueError(f"label_smoothing is {label_smoothing}, but loss {loss} does not use it; set it to 0")
    if chosen_probability is None:
        return
    if loss != "sigmoid":
        raise ValueError(f"chosen_probability is given, but loss {loss} does not use it; set loss to sigmoid")
    check_inputs(chosen_logprobs=like, chosen_probability=chosen_probability)
    # Outside [0, 1] the loss has no lower bound. Written as a negation, the test refuses nan too.
    if not bool(((chosen_probability >= 0) & (chosen_probability <= 1)).all()):
        raise ValueError("chosen_probability has values outside [0, 1]; pass sigmoid(difference of scores)")


def _log_odds(logprobs: Tensor) -> Tensor:
    # A probability within eps of 1 rounds to 1; its odds would be infinite and their gradient nan.
    logprobs = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    # log(1 - exp(x)) without cancellation (Maechler 2012); after the clamp both branches have a finite gradient.
    log_other = torch.where(
        logprobs < -math.log(2), torch.log1p(-torch.exp(logprobs)), torch.log(-torch.expm1(logprobs))
    )
    return logprobs - log_other


def _wins(margin: Tensor) -> Tensor:
    # A policy equal to its reference has only margins of 0: one half is chance level, 0 would look like a loss.
    return torch.heaviside(margin.detach(), margin.new_tensor(0.5))


def _summed(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.detach().sum() for name, values in metrics.items()}
