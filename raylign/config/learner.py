"""How the ranks of a learner split its model and its batches."""

from typing import Literal

from pydantic import Field, model_validator

from raylign.config.base import Config


class ShardingConfig(Config):
    """How the ranks of a learner (`placement.policy.num_actors`, and the critic's) hold its model."""

    strategy: Literal["replicate", "fsdp"] = "replicate"
    """replicate: a whole copy on every rank, gradients summed. fsdp: weights, gradients and optimizer split over the
    ranks (FSDP2), gathered layer by layer when they are needed."""
    shard_size: int | None = Field(default=None, ge=2)
    """Ranks that hold one copy of the model between them (HSDP); all of them if not set."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Ranks that split every matrix by the model's own plan, for layers too large for one GPU."""
    cpu_offload: bool = False
    """Keep the shards of weights, gradients and optimizer in the host's memory between uses."""

    @property
    def splits_model(self) -> bool:
        """Whether several ranks hold one copy of the model between them."""
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
    """What policy, critic and reward-model learners share."""

    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Padded tokens in one forward and backward pass; batches are split by length to stay below it. If not set, 16,384
    on a GPU and 2,048 on a CPU, where small passes stay in cache and pad less (docs/performance.md)."""
    sharding: ShardingConfig = ShardingConfig()
