"""Losses over preference pairs. Both are the Bradley-Terry likelihood; they differ in what plays the reward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from raylign.algorithms.loss import LossSum, check_inputs


def dpo_loss(
    *,
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    beta: float,
) -> LossSum:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7), summed over pairs.

        reward(y) = beta * (log policy(y|x) - log reference(y|x))
        L         = -sum_pairs log sigmoid(reward(chosen) - reward(rejected))

    All `[P]`, logprobs of whole completions in nats (sums over tokens, not means); the policy's carry gradient.

    Metrics, sums over pairs:
        dpo/accuracy         pairs with the larger implicit reward on the chosen side; a tie counts one half
        dpo/margin           reward(chosen) - reward(rejected)
        dpo/chosen_reward    dpo/rejected_reward
        logprobs/chosen      logprobs/rejected, of the policy

    Raises:
        ValueError: shapes differ or a tensor is of half precision.
    """
    check_inputs(
        chosen_logprobs=chosen_logprobs,
        rejected_logprobs=rejected_logprobs,
        ref_chosen_logprobs=ref_chosen_logprobs,
        ref_rejected_logprobs=ref_rejected_logprobs,
    )
    chosen_reward = beta * (chosen_logprobs - ref_chosen_logprobs)
    rejected_reward = beta * (rejected_logprobs - ref_rejected_logprobs)
    margin = chosen_reward - rejected_reward
    metrics = {
        "dpo/accuracy": _num_right(margin),
        "dpo/margin": margin.detach().sum(),
        "dpo/chosen_reward": chosen_reward.detach().sum(),
        "dpo/rejected_reward": rejected_reward.detach().sum(),
        "logprobs/chosen": chosen_logprobs.detach().sum(),
        "logprobs/rejected": rejected_logprobs.detach().sum(),
    }
    return LossSum(-logsigmoid(margin).sum(), metrics)


def bradley_terry_loss(*, chosen_scores: Tensor, rejected_scores: Tensor) -> LossSum:
    """Likelihood of the preferences under a reward model (Ouyang et al. 2022, eq. 1, with K = 2), summed over pairs.

        L = -sum_pairs log sigmoid(score(chosen) - score(rejected))

    Both `[P]`, with gradient.

    Metrics, sums over pairs:
        reward_model/accuracy      pairs with the larger score on the chosen side; a tie counts one half
        reward_model/margin        score(chosen) - score(rejected)
        reward_model/chosen_score

    Raises:
        ValueError: shapes differ or a tensor is of half precision.
    """
    check_inputs(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    margin = chosen_scores - rejected_scores
    metrics = {
        "reward_model/accuracy": _num_right(margin),
        "reward_model/margin": margin.detach().sum(),
        "reward_model/chosen_score": chosen_scores.detach().sum(),
    }
    return LossSum(-logsigmoid(margin).sum(), metrics)


def _num_right(margin: Tensor) -> Tensor:
    # A policy equal to its reference has every margin 0: half right is chance, 0 would look like unlearning.
    return torch.heaviside(margin.detach(), margin.new_tensor(0.5)).sum()
