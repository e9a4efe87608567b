"""Algorithms that read a dataset: SFT, reward model, DPO and its relatives."""

from typing import Literal

from pydantic import Field, model_validator

from raylign.config.base import Config
from raylign.config.model import OptimizerConfig

DPOLoss = Literal["sigmoid", "robust", "ipo", "hinge"]


def check_label_smoothing(loss: DPOLoss, label_smoothing: float) -> None:
    """Refuse a label smoothing that the loss would not read, and a loss that is nothing without it."""
    if label_smoothing > 0 and loss in ("ipo", "hinge"):
        raise ValueError(f"label_smoothing: {loss} has none; set it to 0, or loss: sigmoid or robust")
    if loss == "robust" and label_smoothing == 0:
        raise ValueError("label_smoothing: robust corrects for it and without it is plain DPO; set it above 0")


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
    margin: bool = False
    """Ask for a difference of scores of at least the row's `margin` column (Touvron et al. 2023, eq. 2)."""


class PreferenceConfig(OfflineConfig):
    """What the algorithms on pairs share."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6, warmup_ratio=0.1, schedule="linear")
    sft_coef: float = Field(default=0.0, ge=0)
    """Weight of an SFT term on the chosen completion: its negative logprob per token (Pang et al. 2024)."""


class DPOConfig(PreferenceConfig):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) and the losses of its form."""

    name: Literal["dpo"]
    beta: float = Field(default=0.1, gt=0)
    """Strength of the implicit KL constraint to the reference."""
    loss: DPOLoss = "sigmoid"
    """sigmoid: DPO, with label_smoothing cDPO (Mitchell 2023); robust: unbiased under flipped labels (Chowdhury et al.
    2024); ipo: squared distance to the margin 1 / (2 beta) (Azar et al. 2023); hinge: SLiC (Zhao et al. 2023, in the form of Liu et al. 2024)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels taken to be wrong (sigmoid and robust)."""
    length_normalised: bool = False
    """Logprobs per token instead of per completion, in policy and reference. IPO always does so when this is set; its
    paper sums."""

    @model_validator(mode="after")
    def _smoothing_is_read(self):
        check_label_smoothing(self.loss, self.label_smoothing)
        return self


class SimPOConfig(PreferenceConfig):
    """Simple preference optimisation: no reference, logprobs per token, a target margin (Meng et al. 2024, eq. 6)."""

    name: Literal["simpo"]
    beta: float = Field(default=2.0, gt=0)
    """Scale of the implicit reward."""
    gamma: float = Field(default=1.0, ge=0)
    """Margin that the reward of the chosen one must win by."""


class ORPOConfig(PreferenceConfig):
    """Odds ratio preference optimisation: SFT on the chosen and an odds ratio, no reference (Hong et al. 2024, eq. 6)."""

    name: Literal["orpo"]
    beta: float = Field(default=0.1, gt=0)
    """Weight of the odds ratio beside the SFT loss (lambda in the paper)."""
    sft_coef: float = Field(default=1.0, gt=0)
    """Weight of the SFT loss, which is part of the method."""


class KTOConfig(OfflineConfig):
    """Kahneman-Tversky optimisation on single completions marked good or bad (Ethayarajh et al. 2024, eq. 8)."""

    name: Literal["kto"]
    batch_size: int = Field(default=64, ge=2)
    """Rows in each optimizer step; its mean KL is the point that gains and losses are measured from."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6, warmup_ratio=0.1, schedule="linear")
    beta: float = Field(default=0.1, gt=0)
    """Strength of the implicit KL constraint to the reference."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of the rows marked good."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of the rows marked bad; the paper balances weight x count of both kinds within 1 to 4/3."""
