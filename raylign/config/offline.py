"""Settings of the algorithms that train on a dataset: SFT, reward model, DPO and its relatives."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from raylign.config.model import OptimizerConfig
from raylign.config.traits import LEARNER_METRICS, Algorithm, Headline, Makes, Reads, pair_metrics

DPOLoss = Literal["sigmoid", "robust", "ipo", "hinge"]


def check_label_smoothing(loss: DPOLoss, label_smoothing: float) -> None:
    """Raise ValueError for label smoothing that the loss ignores, and for a loss that needs it but has none."""
    if label_smoothing > 0 and loss in ("ipo", "hinge"):
        raise ValueError(f"label_smoothing: {loss} does not use it; set it to 0, or loss: sigmoid or robust")
    if loss == "robust" and label_smoothing == 0:
        raise ValueError("label_smoothing: robust without it is plain DPO; set it above 0")


class OfflineConfig(Algorithm):
    """Settings of the offline loop, shared by all algorithms that read a dataset."""

    makes: ClassVar[Makes] = "policy"

    epochs: int = Field(default=1, ge=1)
    """Number of passes over the dataset."""
    max_steps: int | None = Field(default=None, ge=1)
    """Largest number of optimizer steps; the run may end within an epoch."""
    batch_size: int = Field(default=64, ge=1)
    """Number of rows (pairs, for pairwise algorithms) in each optimizer step."""

    def num_steps(self, num_rows: int) -> int:
        """Return the optimizer steps of a run over `num_rows` rows."""
        steps = self.epochs * -(-num_rows // self.batch_size)
        return min(steps, self.max_steps or steps)

    def step_metrics(self) -> set[str]:
        return {*LEARNER_METRICS, f"{self.algorithm_name()}/loss"}


class SFTConfig(OfflineConfig):
    """Supervised fine-tuning: cross-entropy of the completion tokens."""

    reads: ClassVar[Reads] = "sequences"
    learner: ClassVar[str | None] = "raylign.learners.sft:SFTLearner"
    kl_key: ClassVar[str | None] = None
    headline: ClassVar[Headline] = (("sft/nll", "nll"),)

    name: Literal["sft"]
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-5, warmup_ratio=0.05, schedule="cosine")
    """Optimizer of the trained model."""

    def step_metrics(self) -> set[str]:
        return super().step_metrics() | {"sft/nll"}


class RewardModelConfig(OfflineConfig):
    """Reward model by the Bradley-Terry likelihood of the preferred completion (Ouyang et al. 2022, eq. 1)."""

    reads: ClassVar[Reads] = "pairs"
    makes: ClassVar[Makes] = "reward_model"
    learner: ClassVar[str | None] = "raylign.learners.reward_model:RewardModelLearner"
    kl_key: ClassVar[str | None] = None
    headline: ClassVar[Headline] = (("reward_model/accuracy", "accuracy"), ("reward_model/loss", "loss"))

    name: Literal["reward_model"]
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, warmup_ratio=0.05, schedule="linear")
    """Optimizer of the trained model."""
    margin: bool = False
    """Train towards a difference of scores of at least the row's `margin` column (Touvron et al. 2023, eq. 2)."""

    def step_metrics(self) -> set[str]:
        names = ("accuracy", "margin", "chosen_score")
        return super().step_metrics() | {f"reward_model/{name}" for name in names}


class PreferenceConfig(OfflineConfig):
    """Settings shared by the algorithms that learn a policy from preference pairs."""

    reads: ClassVar[Reads] = "pairs"
    kl_key: ClassVar[str | None] = "algorithm.beta"

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6, warmup_ratio=0.1, schedule="linear")
    """Optimizer of the trained model."""
    sft_coef: float = Field(default=0.0, ge=0)
    """Weight of an SFT term on the chosen completion: its negative logprob per token (Pang et al. 2024)."""

    def step_metrics(self) -> set[str]:
        return super().step_metrics() | pair_metrics(self.algorithm_name()) | ({"sft/nll"} if self.sft_coef else set())


class DPOConfig(PreferenceConfig):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) and related losses."""

    learner: ClassVar[str | None] = "raylign.learners.preference:DPOLearner"
    headline: ClassVar[Headline] = (("dpo/accuracy", "accuracy"), ("dpo/loss", "loss"), ("dpo/margin", "margin"))

    name: Literal["dpo"]
    beta: float = Field(default=0.1, gt=0)
    """Strength of the implicit KL constraint to the reference."""
    loss: DPOLoss = "sigmoid"
    """sigmoid: DPO, with label_smoothing cDPO (Mitchell 2023); robust: unbiased under flipped labels (Chowdhury et al.
    2024); ipo: squared distance to the margin 1 / (2 beta) (Azar et al. 2023); hinge: SLiC (Zhao et al. 2023, in the form of Liu et al. 2024)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels taken to be wrong (sigmoid and robust)."""
    length_normalised: bool = False
    """Divide logprobs by the number of tokens, in policy and reference. The IPO paper does not."""

    @property
    def needs_reference(self) -> bool:
        """True: the implicit reward is a log ratio to the reference."""
        return True

    @model_validator(mode="after")
    def _smoothing_is_read(self):
        check_label_smoothing(self.loss, self.label_smoothing)
        return self


class SimPOConfig(PreferenceConfig):
    """Simple preference optimisation: no reference, logprobs per token, a target margin (Meng et al. 2024, eq. 6)."""

    learner: ClassVar[str | None] = "raylign.learners.preference:SimPOLearner"
    headline: ClassVar[Headline] = (("simpo/accuracy", "accuracy"), ("simpo/loss", "loss"))

    name: Literal["simpo"]
    beta: float = Field(default=2.0, gt=0)
    """Scale of the implicit reward."""
    gamma: float = Field(default=1.0, ge=0)
    """Target margin between the rewards of the chosen and the rejected completion."""


class CPOConfig(PreferenceConfig):
    """Contrastive preference optimisation: DPO without a reference, and SFT on the chosen (Xu et al. 2024, section 3)."""

    learner: ClassVar[str | None] = "raylign.learners.preference:CPOLearner"
    headline: ClassVar[Headline] = (("cpo/accuracy", "accuracy"), ("cpo/loss", "loss"), ("cpo/margin", "margin"))

    name: Literal["cpo"]
    beta: float = Field(default=0.1, gt=0)
    """Scale of the implicit reward, the logprob of a completion."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels taken to be wrong."""
    sft_coef: float = Field(default=1.0, ge=0)
    """Weight of the SFT loss on the chosen completion, which is part of the method."""


class ORPOConfig(PreferenceConfig):
    """Odds ratio preference optimisation: SFT on the chosen and an odds ratio, no reference (Hong et al. 2024, eq. 6)."""

    learner: ClassVar[str | None] = "raylign.learners.preference:ORPOLearner"
    headline: ClassVar[Headline] = (("orpo/accuracy", "accuracy"), ("orpo/loss", "loss"))

    name: Literal["orpo"]
    beta: float = Field(default=0.1, gt=0)
    """Weight of the odds ratio, added to the SFT loss (lambda in the paper)."""
    sft_coef: float = Field(default=1.0, gt=0)
    """Weight of the SFT loss, which is part of the method."""

    def step_metrics(self) -> set[str]:
        return super().step_metrics() - {"orpo/chosen_reward", "orpo/rejected_reward"}


class KTOConfig(OfflineConfig):
    """Kahneman-Tversky optimisation on single completions marked good or bad (Ethayarajh et al. 2024, eq. 8)."""

    reads: ClassVar[Reads] = "labelled"
    learner: ClassVar[str | None] = "raylign.learners.kto:KTOLearner"
    kl_key: ClassVar[str | None] = "algorithm.beta"
    headline: ClassVar[Headline] = (("kto/accuracy", "accuracy"), ("kto/loss", "loss"))

    name: Literal["kto"]
    batch_size: int = Field(default=64, ge=2)
    """Number of rows in each optimizer step; their mean KL is the point that gains and losses are measured from."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6, warmup_ratio=0.1, schedule="linear")
    """Optimizer of the trained model."""
    beta: float = Field(default=0.1, gt=0)
    """Strength of the implicit KL constraint to the reference."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """Weight of the rows marked good."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """Weight of the rows marked bad; the paper balances weight x count of both kinds within 1 to 4/3."""

    @property
    def needs_reference(self) -> bool:
        """True: the implicit reward is a log ratio to the reference."""
        return True

    def step_metrics(self) -> set[str]:
        own = ("desirable_reward", "undesirable_reward", "accuracy", "kl", "num_desirable", "num_undesirable")
        return super().step_metrics() | {f"kto/{n}" for n in own} | {"logprobs/desirable", "logprobs/undesirable"}
