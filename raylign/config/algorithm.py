"""How the model learns: one class an algorithm, told apart by `name`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raylign.config.base import Config
from raylign.config.offline import (
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    RewardModelConfig,
    SFTConfig,
    SimPOConfig,
)
from raylign.config.online import GRPOConfig, OnlineDPOConfig, PPOConfig, ReinforcePPConfig, RLOOConfig


class CollectConfig(Config):
    """No learning: sample completions of every prompt, score them, and write them as a dataset."""

    name: Literal["collect"]
    rows: int | None = Field(default=1024, ge=1)
    """Rows to write; prompts are sampled again, with other seeds, until there are that many. null: every prompt once."""
    prompts_per_step: int = Field(default=256, ge=1)
    """Prompts sampled and written in one step."""
    samples_per_prompt: int = Field(default=2, ge=1)
    """Completions of each prompt."""
    keep: Literal["pairs", "best", "all"] = "pairs"
    """pairs: neighbouring samples as chosen and rejected, less those that are the same, which nobody can prefer; best:
    of each prompt the sample with the highest score (best-of-n, rejection sampling); all: every sample with its score."""
    label: Literal["bradley_terry", "best"] = "bradley_terry"
    """bradley_terry: chosen with probability sigmoid(difference of scores), as a person would err; best: the higher."""

    @property
    def rows_per_prompt(self) -> int:
        """Rows that a prompt gives, if none is left out."""
        return {"pairs": self.samples_per_prompt // 2, "best": 1, "all": self.samples_per_prompt}[self.keep]

    @property
    def file_name(self) -> str:
        """Of the dataset, in the run directory."""
        return "preferences.jsonl" if self.keep == "pairs" else "completions.jsonl"

    @model_validator(mode="after")
    def _pairs_need_two(self):
        if self.keep == "pairs" and self.samples_per_prompt % 2:
            raise ValueError(f"samples_per_prompt: {self.samples_per_prompt} does not make pairs; set an even number")
        return self


PolicyGradientAlgorithm = PPOConfig | GRPOConfig | RLOOConfig | ReinforcePPConfig
OnlineAlgorithm = PolicyGradientAlgorithm | OnlineDPOConfig
PairAlgorithm = DPOConfig | SimPOConfig | ORPOConfig
OfflineAlgorithm = SFTConfig | RewardModelConfig | PairAlgorithm | KTOConfig
AlgorithmConfig = Annotated[OnlineAlgorithm | OfflineAlgorithm | CollectConfig, Field(discriminator="name")]

ONLINE = ("ppo", "grpo", "rloo", "reinforce++", "online_dpo")
"""Names of the algorithms that sample while they learn."""
OFFLINE = ("sft", "reward_model", "dpo", "simpo", "orpo", "kto")
"""Names of the algorithms that read a dataset."""
PAIR_READERS = ("reward_model", "dpo", "simpo", "orpo", "kto")
"""Names of the algorithms that can learn from preference pairs."""
