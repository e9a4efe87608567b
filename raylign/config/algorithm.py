"""The union of all algorithms: `name` selects the class, which has all facts about the algorithm."""

from typing import Annotated, get_args

from pydantic import Field

from raylign.config.collect import CollectConfig
from raylign.config.offline import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    RewardModelConfig,
    SFTConfig,
    SimPOConfig,
)
from raylign.config.online import GRPOConfig, OnlineDPOConfig, PPOConfig, ReinforcePPConfig, RLOOConfig
from raylign.config.traits import Algorithm

PolicyGradientAlgorithm = PPOConfig | GRPOConfig | RLOOConfig | ReinforcePPConfig
OnlineAlgorithm = PolicyGradientAlgorithm | OnlineDPOConfig
OfflineAlgorithm = SFTConfig | RewardModelConfig | DPOConfig | SimPOConfig | CPOConfig | ORPOConfig | KTOConfig
AlgorithmConfig = Annotated[OnlineAlgorithm | OfflineAlgorithm | CollectConfig, Field(discriminator="name")]


ALGORITHMS: dict[str, type[Algorithm]] = {
    algorithm.algorithm_name(): algorithm for algorithm in get_args(get_args(AlgorithmConfig)[0])
}
"""Config class of every algorithm, by name."""
