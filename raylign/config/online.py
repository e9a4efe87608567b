"""Settings of the algorithms that sample during training: PPO, GRPO, RLOO, REINFORCE++ and online DPO."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from raylign.config.model import OptimizerConfig
from raylign.config.offline import DPOLoss, check_label_smoothing
from raylign.config.online_parts import CriticConfig, ImportanceConfig, KLConfig, OverlongConfig
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


class OnlineConfig(Algorithm):
    """Settings of the online loop, shared by all algorithms that sample during training."""

    reads: ClassVar[Reads] = "prompts"
    makes: ClassVar[Makes] = "policy"
    headline: ClassVar[Headline] = (("reward/mean", "reward"),)

    steps: int = Field(default=100, ge=1)
    """Number of steps; each samples completions and updates the policy."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Number of prompts in each step."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Number of completions of each prompt."""
    epochs: int = Field(default=1, ge=1)
    """Number of passes over the samples of a step."""
    minibatches: int = Field(default=1, ge=1)
    """Number of optimizer steps in each pass."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    """Optimizer of the policy."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Penalty of a completion that ends at the length limit, without eos."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Penalty for every token of a completion."""
    overlong: OverlongConfig | None = None
    """Penalty of completions near the length limit; none if not set."""
    max_staleness: int = Field(default=0, ge=0)
    """Number of steps that sampling may be ahead of the weights; 0 is synchronous and bit-reproducible."""

    @property
    def samples_per_step(self) -> int:
        """Number of completions sampled in each step."""
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def recomputes_old_logprobs(self) -> bool:
        """True if the learner computes the samples' logprobs again before it trains on them."""
        return False

    @property
    def max_extra_batches(self) -> int:
        """Number of further batches of prompts that a step may sample, to replace groups with equal scores."""
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
    """Base of the clipped policy gradients, which differ in how they compute advantages."""

    learner: ClassVar[str | None] = "raylign.learners.policy_gradient:PolicyGradientLearner"
    kl_key: ClassVar[str | None] = "algorithm.kl.coef"
    computes_entropy: ClassVar[bool] = True

    kl: KLConfig = KLConfig()
    """The KL penalty against the reference."""
    clip_range: float = Field(default=0.2, gt=0, lt=1)
    """Lower clip of the policy ratio, which counts only inside [1 - clip_range, 1 + clip_range_high]."""
    clip_range_high: float | None = Field(default=None, gt=0)
    """Upper clip of the policy ratio (0.28 in DAPO); `clip_range` if not set."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of the loss where the advantage is negative, in units of the advantage (Ye et al. 2020); off if not set."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Bonus for the entropy of the policy, per token."""
    aggregate: Literal["token_mean", "sequence_mean", "max_tokens"] = "token_mean"
    """Weight of a token in the loss. token_mean: every token the same (DAPO); sequence_mean: every completion the same
    (GRPO's paper); max_tokens: the sum over tokens divided by rows x rollout.sampling.max_tokens (Dr. GRPO)."""
    whiten_rewards: bool = False
    """Scale the rewards of a step to variance 1 (the mean stays)."""
    whiten_advantages: bool = False
    """Shift and scale the advantages of a step to mean 0 and variance 1."""
    old_logprobs: Literal["engine", "learner"] = "learner"
    """Denominator of the policy ratio: the engine's own logprobs (saves a forward pass; correct if engine and learner agree,
    as in fp32), or the learner's recomputation of them."""
    importance: ImportanceConfig | None = None
    """Importance weights between engine and learner; need old_logprobs: learner. None if not set."""

    @property
    def needs_reference(self) -> bool:
        """True if a KL penalty against the reference is used."""
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
    """The critic."""

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
    """Discount factor per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation: lower is less variance and more bias."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a step to mean 0 and variance 1."""


class GroupConfig(PolicyGradientConfig):
    """Base of the policy gradients whose baseline is the other samples of the prompt; they have no critic."""

    samples_per_prompt: int = 8
    """Number of completions of each prompt: the group."""

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
    """The KL penalty against the reference."""
    scale: Literal["group_std", "none"] = "group_std"
    """Divisor of the advantages of a group: the standard deviation of its rewards, or none (Dr. GRPO)."""
    dynamic_sampling: int = Field(default=0, ge=0)
    """Drop groups whose scores are all equal, and sample up to this many further batches of prompts to replace them (DAPO);
    0 keeps them."""

    @property
    def max_extra_batches(self) -> int:
        return self.dynamic_sampling

    @model_validator(mode="after")
    def _in_order(self):
        if self.dynamic_sampling and self.max_staleness:
            raise ValueError(
                "dynamic_sampling: the number of samples is known only after scoring; set max_staleness: 0"
            )
        return self


class RLOOConfig(GroupConfig):
    """REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024)."""

    name: Literal["rloo"]


class ReinforcePPConfig(PolicyGradientConfig):
    """REINFORCE++ (Hu et al. 2025): returns of every token, normalised over the whole step; no critic, no groups."""

    name: Literal["reinforce++"]
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount factor per token."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a step to mean 0 and variance 1: the global baseline."""


class OnlineDPOConfig(OnlineConfig):
    """DPO on pairs sampled from the current policy and labelled by the reward source (Guo et al. 2024)."""

    learner: ClassVar[str | None] = "raylign.learners.online_dpo:OnlineDPOLearner"
    kl_key: ClassVar[str | None] = "algorithm.beta"

    name: Literal["online_dpo"]
    samples_per_prompt: int = Field(default=2, ge=2, multiple_of=2)
    """Number of completions of each prompt; neighbours make a pair."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the implicit KL constraint to the reference."""
    loss: DPOLoss = "sigmoid"
    """Loss on the pairs, as in dpo."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels taken to be wrong, as in dpo (sigmoid and robust)."""
    label: Literal["bradley_terry", "soft", "best"] = "soft"
    """Choice within a pair. bradley_terry: random, with probability sigmoid(difference of scores), like the errors of a
    person; soft: both orders, weighted by that probability, which is its expectation without noise; best: the higher
    score."""

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
