"""Settings of a learner's optimizer, without imports of torch: the driver creates them."""

from __future__ import annotations

from dataclasses import dataclass, field

from raylign.config import OptimizerConfig, ShardingConfig


@dataclass(frozen=True)
class LearnerSpec:
    """Settings of a learner, apart from its model and its loss."""

    optimizer: OptimizerConfig
    total_steps: int  # optimizer steps of the whole run, for the learning-rate schedule
    micro_batch_tokens: int  # padded tokens in one forward and backward pass
    compute_dtype: str  # float32 or bfloat16
    seed: int
    max_skipped_steps: int
    num_threads: int | None = None
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
