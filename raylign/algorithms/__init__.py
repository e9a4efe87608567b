"""The maths: torch tensors in, small named results out. No ray, no I/O, no config.

Losses return sums (`LossSum`), never means; the learner divides by the element count of the whole optimizer step.
"""

from raylign.algorithms.advantages import Advantages, gae, shape_rewards, whiten
from raylign.algorithms.kl import AdaptiveKL, FixedKL, KLEstimator, kl_estimate
from raylign.algorithms.logprobs import TokenLogprobs, sequence_sums, token_logprobs
from raylign.algorithms.loss import LossSum
from raylign.algorithms.policy_loss import ppo_policy_loss
from raylign.algorithms.preference_loss import bradley_terry_loss, dpo_loss
from raylign.algorithms.supervised_loss import cross_entropy_loss
from raylign.algorithms.value_loss import ppo_value_loss

__all__ = [
    "AdaptiveKL",
    "Advantages",
    "FixedKL",
    "KLEstimator",
    "LossSum",
    "TokenLogprobs",
    "bradley_terry_loss",
    "cross_entropy_loss",
    "dpo_loss",
    "gae",
    "kl_estimate",
    "ppo_policy_loss",
    "ppo_value_loss",
    "sequence_sums",
    "shape_rewards",
    "token_logprobs",
    "whiten",
]
