"""Settings of a learner: how its ranks split the model and the batches."""

from typing import Literal

from pydantic import Field, model_validator

from raylign.config.base import Config


class ShardingConfig(Config):
    """Distribution of a learner's model over its ranks (`placement.policy.num_actors`, and the critic's)."""

    strategy: Literal["replicate", "fsdp"] = "replicate"
    """replicate: every rank has a full copy, and gradients are summed. fsdp: weights, gradients and optimizer state are
    split over the ranks (FSDP2) and gathered layer by layer when needed."""
    shard_size: int | None = Field(default=None, ge=2)
    """Number of ranks that share one copy of the model (HSDP); all ranks if not set."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Number of ranks that split every matrix, by the model's own plan, for layers too large for one GPU."""
    cpu_offload: bool = False
    """Keep the shards of weights, gradients and optimizer state in host memory between uses."""

    @property
    def splits_model(self) -> bool:
        """True if several ranks share one copy of the model."""
        return self.strategy == "fsdp" or self.tensor_parallel > 1

    @model_validator(mode="after")
    def _consistent(self):
        if self.strategy == "replicate":
            if self.shard_size is not None:
                raise ValueError("shard_size: only fsdp splits the model; set strategy: fsdp")
            if self.cpu_offload:
                raise ValueError("cpu_offload: only fsdp moves shards to the host; set strategy: fsdp")
        return self


class LearnerConfig(Config):
    """Settings that policy, critic and reward-model learners share."""

    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Largest number of padded tokens in one forward and backward pass; batches are split by length to stay below it. If
    not set, 16,384 on a GPU and 2,048 on a CPU, where small passes stay in cache and need less padding
    (docs/performance.md)."""
    sharding: ShardingConfig = ShardingConfig()
    """Distribution of the model over the learner's ranks."""
