"""How the model learns: one class an algorithm, told apart by `name`."""

from typing import Annotated, Literal

from pydantic import Field

from raylign.config.base import Config
from raylign.config.model import OptimizerConfig


class KLConfig(Config):
    coef: float = Field(default=0.05, ge=0)
    """Weight beta of the penalty against the reference, per token, in the shaped reward."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """k1 = log ratio, k2 = half its square, k3 = ratio - 1 - log ratio (Schulman 2020)."""
    controller: Literal["fixed", "adaptive"] = "fixed"
    """adaptive moves `coef` so that the KL of a sequence stays near `target` (Ziegler et al. 2019)."""
    target: float = Field(default=6.0, gt=0)
    """KL per sequence, in nats, that the adaptive controller aims at."""
    horizon: int = Field(default=10_000, ge=1)
    """Samples over which the adaptive controller corrects an error."""


class CriticConfig(Config):
    path: str | None = None
    """Model the critic starts from; the policy's start if not set. The value head is new."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
    value_clip_range: float | None = Field(default=0.2, gt=0)
    """Clip of the value update around the old value; null to turn it off."""


class PPOConfig(Config):
    """Proximal policy optimisation with a critic (Schulman et al. 2017; Ouyang et al. 2022)."""

    name: Literal["ppo"]
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
    critic: CriticConfig = CriticConfig()
    kl: KLConfig = KLConfig()
    clip_range: float = Field(default=0.2, gt=0, lt=1)
    """The policy ratio counts only inside [1 - clip, 1 + clip]."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Bias-variance trade of generalised advantage estimation."""
    whiten_advantages: bool = True
    """Give the advantages of a round mean 0 and variance 1."""
    whiten_rewards: bool = False
    """Give the shaped rewards of a round variance 1 (the mean stays)."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Taken from the score of a completion that was cut by length."""
    old_logprobs: Literal["engine", "learner"] = "learner"
    """Denominator of the ratio: the engine's own logprobs (one forward pass less; right where engine and learner
    agree, as in fp32), or the learner's recomputation of them."""
    max_staleness: int = Field(default=0, ge=0)
    """Rounds of samples that may be generated ahead of the weights; 0 is synchronous and bit-reproducible."""


class OfflineConfig(Config):
    epochs: int = Field(default=1, ge=1)
    """Passes over the dataset."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps, even inside an epoch."""
    batch_size: int = Field(default=64, ge=1)
    """Rows (pairs, for pairwise algorithms) in each optimizer step."""


class SFTConfig(OfflineConfig):
    """Supervised fine-tuning: cross-entropy of the completion tokens."""

    name: Literal["sft"]
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-5, warmup_ratio=0.05, schedule="cosine")


class RewardModelConfig(OfflineConfig):
    """Reward model by the Bradley-Terry likelihood of the preferred completion (Ouyang et al. 2022, eq. 1)."""

    name: Literal["reward_model"]
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, warmup_ratio=0.05, schedule="linear")


class DPOConfig(OfflineConfig):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7)."""

    name: Literal["dpo"]
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6, warmup_ratio=0.1, schedule="linear")
    beta: float = Field(default=0.1, gt=0)
    """Strength of the implicit KL constraint to the reference."""


class CollectConfig(Config):
    """No learning: sample two completions a prompt and let the reward source choose; writes a preference dataset."""

    name: Literal["collect"]
    pairs: int = Field(default=1024, ge=1)
    """Preference pairs to write."""
    prompts_per_step: int = Field(default=256, ge=1)
    """Prompts sampled (two completions each) and written in one step."""
    label: Literal["bradley_terry", "best"] = "bradley_terry"
    """bradley_terry: chosen with probability sigmoid(difference of scores), as a person would err; best: the higher."""
    drop_identical: bool = True
    """Leave out pairs whose two completions are the same, which nobody can prefer."""


OnlineAlgorithm = PPOConfig
OfflineAlgorithm = SFTConfig | RewardModelConfig | DPOConfig
AlgorithmConfig = Annotated[
    PPOConfig | SFTConfig | RewardModelConfig | DPOConfig | CollectConfig, Field(discriminator="name")
]
