"""What a run is: frozen pydantic classes and their loader. Imports no torch, ray or vllm."""

from raylign.config.algorithm import (
    ALGORITHMS,
    OfflineAlgorithm,
    OnlineAlgorithm,
    PolicyGradientAlgorithm,
)
from raylign.config.base import Config
from raylign.config.collect import CollectConfig
from raylign.config.data import DataConfig
from raylign.config.learner import LearnerConfig, ShardingConfig
from raylign.config.load import load_config, parse_config
from raylign.config.model import LoRAConfig, ModelConfig, OptimizerConfig
from raylign.config.offline import (
    DPOConfig,
    KTOConfig,
    OfflineConfig,
    ORPOConfig,
    PreferenceConfig,
    RewardModelConfig,
    SFTConfig,
    SimPOConfig,
)
from raylign.config.online import (
    CriticAlgorithm,
    GRPOConfig,
    OnlineConfig,
    OnlineDPOConfig,
    PolicyGradientConfig,
    PPOConfig,
    ReinforcePPConfig,
    RLOOConfig,
)
from raylign.config.online_parts import CriticConfig, ImportanceConfig, KLConfig, OverlongConfig
from raylign.config.roles import (
    ElasticConfig,
    EvaluationConfig,
    FunctionReward,
    LimitsConfig,
    ModelReward,
    PlacementConfig,
    RewardConfig,
    RoleResources,
    RolloutConfig,
    SamplingConfig,
    TaskReward,
)
from raylign.config.run import CheckpointConfig, RunConfig, TrackingConfig, WandbConfig
from raylign.config.task import ExactTask, SentimentTask, SummarizeTask, TaskConfig
from raylign.config.traits import Algorithm

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "CheckpointConfig",
    "CollectConfig",
    "Config",
    "CriticAlgorithm",
    "CriticConfig",
    "DPOConfig",
    "DataConfig",
    "ElasticConfig",
    "EvaluationConfig",
    "ExactTask",
    "FunctionReward",
    "GRPOConfig",
    "ImportanceConfig",
    "KLConfig",
    "KTOConfig",
    "LearnerConfig",
    "LimitsConfig",
    "LoRAConfig",
    "ModelConfig",
    "ModelReward",
    "ORPOConfig",
    "OfflineAlgorithm",
    "OfflineConfig",
    "OnlineAlgorithm",
    "OnlineConfig",
    "OnlineDPOConfig",
    "OptimizerConfig",
    "OverlongConfig",
    "PPOConfig",
    "PlacementConfig",
    "PolicyGradientAlgorithm",
    "PolicyGradientConfig",
    "PreferenceConfig",
    "RLOOConfig",
    "ReinforcePPConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RoleResources",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "SamplingConfig",
    "SentimentTask",
    "ShardingConfig",
    "SimPOConfig",
    "SummarizeTask",
    "TaskConfig",
    "TaskReward",
    "TrackingConfig",
    "WandbConfig",
    "load_config",
    "parse_config",
]
