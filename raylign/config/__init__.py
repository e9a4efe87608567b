"""What a run is: frozen pydantic classes and their loader. Imports no torch, ray or vllm."""

from raylign.config.algorithm import (
    CollectConfig,
    CriticConfig,
    DPOConfig,
    KLConfig,
    PPOConfig,
    RewardModelConfig,
    SFTConfig,
)
from raylign.config.base import Config
from raylign.config.data import DataConfig
from raylign.config.load import load_config, parse_config
from raylign.config.model import ModelConfig, OptimizerConfig
from raylign.config.roles import (
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
from raylign.config.run import (
    CheckpointConfig,
    LearnerConfig,
    RunConfig,
    SentimentTask,
    TrackingConfig,
    WandbConfig,
)

__all__ = [
    "CheckpointConfig",
    "CollectConfig",
    "Config",
    "CriticConfig",
    "DPOConfig",
    "DataConfig",
    "EvaluationConfig",
    "FunctionReward",
    "KLConfig",
    "LearnerConfig",
    "LimitsConfig",
    "ModelConfig",
    "ModelReward",
    "OptimizerConfig",
    "PPOConfig",
    "PlacementConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RoleResources",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "SamplingConfig",
    "SentimentTask",
    "TaskReward",
    "TrackingConfig",
    "WandbConfig",
    "load_config",
    "parse_config",
]
