"""The base classes of policy learners: computing logprobs and exporting weights, for any loss."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

from raylign.config import ModelConfig, OnlineConfig, SamplingConfig
from raylign.learners.learner import Learner
from raylign.learners.spec import LearnerSpec
from raylign.learners.world import World, is_sent_weights
from raylign.models.description import load_tokenizer
from raylign.models.infer import batch_logprobs
from raylign.models.load import DTYPES, export_weights, load_causal
from raylign.types import BoolArray, FloatArray, IntArray, LongArray

A = TypeVar("A", bound=OnlineConfig)


class PolicyLearner(Learner):
    """A policy and its optimizer."""

    role = "policy"

    def __init__(self, model: ModelConfig, spec: LearnerSpec, world: World | None = None) -> None:
        empty = is_sent_weights(world, spec.sharding)
        super().__init__(load_causal(model, spec.seed, empty), load_tokenizer(model), spec, world)

    def batch_logprobs(
        self, tokens: IntArray, lengths: LongArray, completion_mask: BoolArray, temperature: float
    ) -> FloatArray:
        """Compute logprobs with the current weights, without gradients: [N, L], nats, 0 outside the mask."""
        return batch_logprobs(
            self.model,
            tokens,
            lengths,
            completion_mask,
            temperature=temperature,
            max_tokens=self.spec.micro_batch_tokens,
            compute_dtype=self.compute_dtype,
            ranks=self.ranks,
        )

    def weights(self, dtype: str, bucket_bytes: int = 512 * 1024**2) -> list[dict[str, np.ndarray]]:
        """Export the weights, or the adapter alone, for the rollout engines (see `export_weights`).

        Args:
            dtype: precision of the engine.
            bucket_bytes: size of a bucket, about; weights are returned in several.
        """
        with self.timed("time/export_weights"):
            buckets: list[dict[str, np.ndarray]] = [{}]
            size = 0
            for name, array in export_weights(self.model, DTYPES[dtype]).items():
                if buckets[-1] and size + array.nbytes > bucket_bytes:
                    buckets.append({})
                    size = 0
                buckets[-1][name] = array
                size += array.nbytes
            return buckets


class OnlinePolicyLearner(PolicyLearner, Generic[A]):
    """A policy that learns from its own samples.

    Args:
        sampling: settings of the rollouts; logprobs are computed at its temperature.
    """

    def __init__(
        self, model: ModelConfig, spec: LearnerSpec, algorithm: A, sampling: SamplingConfig, world: World | None = None
    ) -> None:
        super().__init__(model, spec, world)
        self.algorithm = algorithm
        self.sampling = sampling
