"""Algorithms that sample while they learn: PPO, GRPO, RLOO, REINFORCE++ and online DPO."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from raylign.config.base import Config
from raylign.config.model import OptimizerConfig
from raylign.config.offline import DPOLoss, check_label_smoothing
from raylign.config.traits import (
    ENGINE_METRICS,
    LEARNER_METRICS,
    OPTIMIZER_METRICS,
    Algorithm,
    Headline,
    Makes,
    Reads,
    pair_metrics,
)


class KLConfig(Config):
    coef: float = Field(default=0.05, ge=0)
    """Weight beta of the penalty against the reference, per token. With 0 no reference is placed."""
    where: Literal["reward", "loss"] = "reward"
    """reward: taken from the reward of every token, so that the optimum is pi_ref exp(score / coef), normalised; loss:
    added to the loss of every token, as in the GRPO paper, where it does not see what a token does to the KL of those
    that follow."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """k1 = log ratio, k2 = half its square, k3 = ratio - 1 - log ratio (Schulman 2020). In the loss k2 has the gradient
    of the KL of each token itself, k3 an approximation of it, k1 none."""
    controller: Literal["fixed", "adaptive", "annealed"] = "fixed"
    """adaptive moves `coef` so that the KL of a sequence stays near `target` (Ziegler et al. 2019); annealed lowers it
    from `start` to `coef` over the first `horizon` samples, so that the policy does not drop what it has not yet learned to
    use (docs/decisions/0006-kl-annealing.md)."""
    start: float = Field(default=1.0, gt=0)
    """Where the annealed coefficient begins; a `coef` above it is held from the beginning."""
    target: float = Field(default=6.0, gt=0)
    """KL per sequence, in nats, that the adaptive controller aims at."""
    horizon: int = Field(default=10_000, ge=1)
    """Samples over which the adaptive controller corrects an error, or the annealed one comes down."""

    @model_validator(mode="after")
    def _moves(self):
        if self.where == "loss" and self.estimator == "k1":
            raise ValueError(
                "estimator: k1 in the loss has a gradient of 0 in expectation and would hold nothing back; "
                "set estimator: k2 or k3, or where: reward"
            )
        if self.controller != "fixed" and self.coef == 0:
            raise ValueError(f"coef: the {self.controller} controller moves it by factors; set it above 0")
        return self


class CriticConfig(Config):
    path: str | None = None
    """Model the critic starts from; the policy's start if not set. The value head is new."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    value_clip_range: float | None = Field(default=0.2, gt=0)
    """Clip of the value update around the old value; null to turn it off."""


class OverlongConfig(Config):
    """Soft overlong punishment (Yu et al. 2025, DAPO, eq. 13): the score falls linearly over the last `buffer` tokens
    before `rollout.sampling.max_tokens`, down to `-penalty` at the limit."""

    buffer: int = Field(ge=1)
    """Tokens before the limit over which the penalty grows."""
    penalty: float = Field(default=1.0, gt=0)
    """Taken from the score of a completion that reaches the limit."""


class ImportanceConfig(Config):
    """Correction for samples that were drawn from other probabilities than the learner's: the engine's rounding, or
    weights of an earlier version (Yao et al. 2025)."""

    mode: Literal["truncate", "mask"] = "truncate"
    """truncate: the weight exp(learner - engine) is cut at `cap`; mask: tokens outside [1 / cap, cap] are left out."""
    cap: float = Field(default=2.0, gt=1)
    """Largest weight."""
    level: Literal["token", "sequence"] = "token"
    """One weight a token, or one a completion (the product over its tokens)."""


class OnlineConfig(Algorithm):
    """Settings of the online loop, shared by all algorithms that sample while they learn."""

    reads: ClassVar[Reads] = "prompts"
    makes: ClassVar[Makes] = "policy"
    headline: ClassVar[Headline] = (("reward/mean", "reward"),)

    steps: int = Field(default=100, ge=1)
    """Rollout + update rounds."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts in each round."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Completions of each prompt."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the samples of a round."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps in each pass."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Taken from the score of a completion that was cut by length."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Taken from the score for every token of the completion."""
    overlong: OverlongConfig | None = None
    max_staleness: int = Field(default=0, ge=0)
    """Rounds of samples that may be generated ahead of the weights; 0 is synchronous and bit-reproducible."""

    @property
    def samples_per_step(self) -> int:
        """Completions sampled in each round."""
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def recomputes_old_logprobs(self) -> bool:
        """True if the learner scores the samples again before it learns from them."""
        return False

    @property
    def max_extra_batches(self) -> int:
        """Further batches of prompts that a step may sample to replace groups that teach nothing."""
        return 0

    def num_steps(self, num_rows: int) -> int:
        """Return `steps`, whatever the size of the data: prompts are sampled again."""
        return self.steps

    def num_optimizer_steps(self, num_rows: int) -> int:
        return self.steps * self.epochs * self.minibatches

    def step_metrics(self) -> set[str]:
        names = {*LEARNER_METRICS, *ENGINE_METRICS, "policy/loss", "time/sync", "time/export_weights"}
        names |= {"reward/mean", "reward/std", "completion/length", "completion/finished", "time/idle_fraction"}
        return names | ({"kl/k1", "kl/k3", "time/ref_logprobs"} if self.needs_reference else set())


class PolicyGradientConfig(OnlineConfig):
    """The clipped policy gradient; the algorithms below differ in where their advantages come from."""

    learner: ClassVar[str | None] = "raylign.learners.policy_gradient:PolicyGradientLearner"
    kl_key: ClassVar[str | None] = "algorithm.kl.coef"
    computes_entropy: ClassVar[bool] = True

    kl: KLConfig = KLConfig()
    clip_range: float = Field(default=0.2, gt=0, lt=1)
    """The policy ratio counts only inside [1 - clip_range, 1 + clip_range_high]."""
    clip_range_high: float | None = Field(default=None, gt=0)
    """Upper clip, if it is to differ (DAPO's clip-higher: 0.28); `clip_range` if not set."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of the loss where the advantage is negative, in units of the advantage (Ye et al. 2020); null is off."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Bonus for the entropy of the policy, per token."""
    aggregate: Literal["token_mean", "sequence_mean", "max_tokens"] = "token_mean"
    """Weight of a token in the loss. token_mean: every token the same (DAPO); sequence_mean: every completion the same
    (GRPO's paper); max_tokens: the sum over tokens divided by rows x rollout.sampling.max_tokens (Dr. GRPO)."""
    whiten_rewards: bool = False
    """Give the rewards of a round variance 1 (the mean stays)."""
    whiten_advantages: bool = False
    """Give the advantages of a round mean 0 and variance 1."""
    old_logprobs: Literal["engine", "learner"] = "learner"
    """Denominator of the ratio: the engine's own logprobs (one forward pass less; right where engine and learner
    agree, as in fp32), or the learner's recomputation of them."""
    importance: ImportanceConfig | None = None
    """Needs old_logprobs: learner, which it compares with the engine's."""

    @property
    def needs_reference(self) -> bool:
        """True if a KL is measured against the reference."""
        return self.kl.coef > 0

    @property
    def recomputes_old_logprobs(self) -> bool:
        return self.old_logprobs == "learner"

    def step_metrics(self) -> set[str]:
        names = super().step_metrics() | {"kl/coef"}
        names |= {f"policy/{name}" for name in ("clip_fraction", "approx_kl", "ratio", "entropy")}
        if self.kl.where == "loss" and self.kl.coef > 0:
            names |= {"policy/kl_loss"}
        if self.recomputes_old_logprobs:
            names |= {"logprob_gap/p50", "logprob_gap/p99", "logprob_gap/max", "time/logprobs"}
        if self.dual_clip:
            names |= {"policy/dual_clip_fraction"}
        if self.importance:
            names |= {"policy/importance"}
        return names | ({"rollout/groups"} if self.max_extra_batches else set())

    @model_validator(mode="after")
    def _comparable(self):
        if self.importance and self.old_logprobs == "engine":
            raise ValueError(
                "importance: it compares the learner's logprobs with the engine's; set old_logprobs: learner"
            )
        return self


class CriticAlgorithm(PolicyGradientConfig):
    """A policy gradient whose advantages come from a critic."""

    critic: CriticConfig = CriticConfig()

    @property
    def has_critic(self) -> bool:
        return True

    def step_metrics(self) -> set[str]:
        names = super().step_metrics() | {f"critic/{name}" for name in ("loss", *OPTIMIZER_METRICS)}
        return names | {"value/mean", "value/error", "value/clip_fraction", "time/values", "time/update_critic"}

    def model_paths(self) -> list[tuple[str, str]]:
        return [("algorithm.critic.path", self.critic.path)] if self.critic.path else []


class PPOConfig(CriticAlgorithm):
    """Proximal policy optimisation with a critic (Schulman et al. 2017; Ouyang et al. 2022)."""

    name: Literal["ppo"]
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Bias-variance trade of generalised advantage estimation."""
    whiten_advantages: bool = True
    """Give the advantages of a round mean 0 and variance 1."""


class GroupConfig(PolicyGradientConfig):
    """Several samples of a prompt are each other's baseline; there is no critic."""

    samples_per_prompt: int = 8
    """Completions of each prompt: the group."""

    @field_validator("samples_per_prompt")
    @classmethod
    def _group(cls, size: int) -> int:
        if size < 2:
            raise ValueError("a group of 1 is its own baseline, so every advantage would be 0; set 2 or more")
        return size


class GRPOConfig(GroupConfig):
    """Group relative policy optimisation (Shao et al. 2024), with the options of Dr. GRPO (Liu et al. 2025: scale: none,
    aggregate: max_tokens) and DAPO (Yu et al. 2025: clip_range_high, dynamic_sampling, overlong)."""

    name: Literal["grpo"]
    kl: KLConfig = KLConfig(coef=0.04, where="loss", estimator="k3")
    scale: Literal["group_std", "none"] = "group_std"
    """Divide the advantages of a group by the standard deviation of its rewards, or not (Dr. GRPO)."""
    dynamic_sampling: int = Field(default=0, ge=0)
    """Leave out groups whose scores are all equal, and sample up to this many further rounds of prompts to replace
    them (DAPO); 0 keeps them."""

    @property
    def max_extra_batches(self) -> int:
        return self.dynamic_sampling

    @model_validator(mode="after")
    def _in_order(self):
        if self.dynamic_sampling and self.max_staleness:
            raise ValueError("dynamic_sampling: how much is sampled is known only after scoring; set max_staleness: 0")
        return self


class RLOOConfig(GroupConfig):
    """REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024)."""

    name: Literal["rloo"]


class ReinforcePPConfig(PolicyGradientConfig):
    """REINFORCE++ (Hu et al. 2025): returns of every token, normalised over the whole round; no critic, no groups."""

    name: Literal["reinforce++"]
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    whiten_advantages: bool = True
    """Give the advantages of a round mean 0 and variance 1: the global baseline."""


class OnlineDPOConfig(OnlineConfig):
    """DPO on pairs sampled from the present policy and labelled by the reward source (Guo et al. 2024)."""

    learner: ClassVar[str | None] = "raylign.learners.online_dpo:OnlineDPOLearner"
    kl_key: ClassVar[str | None] = "algorithm.beta"

    name: Literal["online_dpo"]
    samples_per_prompt: int = Field(default=2, ge=2, multiple_of=2)
    """Completions of each prompt; neighbours make a pair."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the implicit KL constraint to the reference."""
    loss: DPOLoss = "sigmoid"
    """See dpo."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """See dpo."""
    label: Literal["bradley_terry", "soft", "best"] = "soft"
    """bradley_terry: chosen with probability sigmoid(difference of scores), as a person would err; soft: both orders,
    weighted by that probability, which is its expectation without the noise; best: the higher score."""

    @property
    def needs_reference(self) -> bool:
        """True: DPO's implicit reward is a log ratio to the reference."""
        return True

    @property
    def samples_per_item(self) -> int:
        return 2

    def step_metrics(self) -> set[str]:
        return super().step_metrics() | pair_metrics("dpo") | {"online_dpo/pairs"}

    @model_validator(mode="after")
    def _read(self):
        check_label_smoothing(self.loss, self.label_smoothing)
        if self.label == "soft" and self.loss != "sigmoid":
            raise ValueError(f"label: soft is made for loss: sigmoid, not {self.loss}; set bradley_terry or best")
        return self
