"""Settings that online algorithms are made of: KL penalty, critic, overlong penalty and importance weights."""

from typing import Literal

from pydantic import Field, model_validator

from raylign.config.base import Config
from raylign.config.model import OptimizerConfig


class KLConfig(Config):
    """The KL penalty that holds the policy near the reference."""

    coef: float = Field(default=0.05, ge=0)
    """KL coefficient beta, per token; with 0 no reference model is placed."""
    where: Literal["reward", "loss"] = "reward"
    """reward: the penalty is subtracted from the reward of every token, so that the optimum is pi_ref exp(score / coef),
    normalised. loss: it is added to the loss of every token, as in the GRPO paper, and then ignores the effect of a token
    on the KL of the tokens after it."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """k1 = log ratio, k2 = half its square, k3 = ratio - 1 - log ratio (Schulman 2020). In the loss, k2 has the gradient
    of the KL of each token, k3 approximates it, and the gradient of k1 is 0 in expectation."""
    controller: Literal["fixed", "adaptive", "annealed"] = "fixed"
    """adaptive moves `coef` so that the KL of a sequence stays near `target` (Ziegler et al. 2019); annealed lowers it
    from `start` to `coef` over the first `horizon` samples, so that the policy keeps abilities that it has not yet learned to use
    (docs/decisions/0006-kl-annealing.md)."""
    start: float = Field(default=1.0, gt=0)
    """First value of the annealed coefficient; a `coef` above it applies from the first step."""
    target: float = Field(default=6.0, gt=0)
    """KL per sequence, in nats, that the adaptive controller aims for."""
    horizon: int = Field(default=10_000, ge=1)
    """Number of samples over which the adaptive controller corrects an error, or the annealed coefficient falls."""

    @model_validator(mode="after")
    def _moves(self):
        if self.where == "loss" and self.estimator == "k1":
            raise ValueError(
                "estimator: k1 in the loss has a gradient of 0 in expectation and would have no effect; "
                "set estimator: k2 or k3, or where: reward"
            )
        if self.controller != "fixed" and self.coef == 0:
            raise ValueError(f"coef: the {self.controller} controller multiplies it by factors; set it above 0")
        return self


class CriticConfig(Config):
    """The critic: a model with a value head, and how it is trained."""

    path: str | None = None
    """Model that the critic starts from, with a new value head; the policy's start if not set."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    """Optimizer of the critic."""
    value_clip_range: float | None = Field(default=0.2, gt=0)
    """Largest change of a value from the old value that the loss rewards; null turns the clip off."""


class OverlongConfig(Config):
    """Soft overlong punishment (Yu et al. 2025, DAPO, eq. 13): the score falls linearly over the last `buffer` tokens
    before `rollout.sampling.max_tokens`, down to `-penalty` at the limit."""

    buffer: int = Field(ge=1)
    """Number of tokens before the limit over which the penalty grows."""
    penalty: float = Field(default=1.0, gt=0)
    """Penalty of a completion that reaches the limit."""


class ImportanceConfig(Config):
    """Importance weights for samples whose probabilities differ from the learner's, because of the engine's rounding or an
    earlier version of the weights (Yao et al. 2025)."""

    mode: Literal["truncate", "mask"] = "truncate"
    """truncate: the weight exp(learner - engine) is at most `cap`; mask: tokens whose weight is outside [1 / cap, cap] are left out."""
    cap: float = Field(default=2.0, gt=1)
    """Largest importance weight."""
    level: Literal["token", "sequence"] = "token"
    """One weight per token, or one per completion (the product over its tokens)."""
