"""One Ray actor class a role: a line a method over the plain class.

`start` builds the plain class inside the actor, so that a wrong path or a full disk comes back as its own error and
not as the death of an actor.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import ray
from ray import ObjectRef

from raylign.learners.experience import assemble
from raylign.learners.learner import Learner
from raylign.learners.ppo import CriticLearner, PPOPolicyLearner
from raylign.learners.reference import ReferenceModel
from raylign.learners.world import World
from raylign.models.load import read_weights
from raylign.rewards.report import evaluation_part, label_pairs
from raylign.rewards.worker import RewardWorker
from raylign.rollout.worker import RolloutWorker
from raylign.types import Dataset, Experience, FloatArray, LongArray, PairSet, PromptSet, RolloutBatch, Scores


class Shell:
    """What every actor answers."""

    worker: Any

    def start(self, build: Callable[[], Any]) -> None:
        self.worker = build()

    def pop_metrics(self) -> dict[str, float]:
        return self.worker.pop_metrics()


class RolloutShell(Shell):
    worker: RolloutWorker

    def use_initial_weights(self, version: int) -> int:
        return self.worker.use_initial_weights(version)

    def load_weights(self, version: int, *buckets: dict[str, np.ndarray]) -> int:
        return self.worker.load_weights(version, *buckets)

    def load_folder(self, version: int, folder: str, dtype: str) -> int:
        return self.worker.load_weights(version, read_weights(folder, dtype))

    def generate(
        self, prompts: PromptSet, rows: LongArray, num_samples: int, step: int, policy_version: int
    ) -> RolloutBatch:
        return self.worker.generate(prompts, rows, num_samples, step, policy_version)


class RewardShell(Shell):
    worker: RewardWorker

    def score(self, batch: RolloutBatch, prompts: PromptSet) -> Scores:
        return self.worker.score(batch, prompts)

    def label_pairs(
        self, batch: RolloutBatch, prompts: PromptSet, scores: Scores, label: str, seed: int, step: int, distinct: bool
    ) -> list[dict[str, Any]]:
        return label_pairs(self.worker.tokenizer, batch, prompts, scores, label, seed, step, distinct)

    def evaluation_part(
        self, batch: RolloutBatch, prompts: PromptSet, scores: Scores, ref_logprobs: FloatArray | None, keep: int
    ) -> dict[str, Any]:
        return evaluation_part(self.worker.tokenizer, batch, prompts, scores, ref_logprobs, keep)


class ReferenceShell(Shell):
    worker: ReferenceModel

    def logprobs(self, batch: RolloutBatch) -> FloatArray:
        return self.worker.logprobs(batch)

    def pair_logprobs(self, pairs: PairSet, first: int, last: int) -> tuple[FloatArray, FloatArray]:
        score = self.worker.sequence_logprobs
        return score(pairs.chosen, first, last), score(pairs.rejected, first, last)


class LearnerShell(Shell):
    """One rank of a learner group."""

    worker: Any

    def free_address(self) -> str:
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    def join(self, build: partial[Learner], world: tuple[int, int, str | None, float], restore: str | None) -> None:
        self.worker = build(world=World(*world))
        if restore:
            self.worker.restore(restore)

    def save(self, folder: str) -> None:
        self.worker.save(folder)


class PolicyShell(LearnerShell):
    worker: Any

    def weights(self, dtype: str) -> list[ObjectRef]:
        return [ray.put(bucket) for bucket in self.worker.weights(dtype)]


class PPOPolicyShell(PolicyShell):
    worker: PPOPolicyLearner

    def logprobs(self, batch: RolloutBatch) -> FloatArray:
        return self.worker.logprobs(batch)

    def assemble(self, kl_coef: float, num_shards: int, *parts: Any) -> tuple[Experience, dict[str, float]]:
        """`parts`: rollouts, scores, ref_logprobs, values and (unless the engine's serve) old_logprobs, shard by shard."""
        rollouts, scores, ref, values, *old = (parts[i : i + num_shards] for i in range(0, len(parts), num_shards))
        old_logprobs = old[0] if old else [rollout.logprobs for rollout in rollouts]
        return assemble(self.worker.algorithm, kl_coef, rollouts, scores, old_logprobs, ref, values)

    def update(self, experience: Experience) -> dict[str, float]:
        return self.worker.update(experience)


class CriticShell(LearnerShell):
    worker: CriticLearner

    def values(self, batch: RolloutBatch) -> FloatArray:
        return self.worker.values(batch)

    def update(self, experience: Experience) -> dict[str, float]:
        return self.worker.update(experience)


class OfflineShell(PolicyShell):
    """A learner that reads a dataset: SFT, DPO, reward model."""

    worker: Any

    def set_data(self, data: Dataset, ref_logprobs: tuple[FloatArray, FloatArray] | None = None) -> None:
        self.worker.set_data(data, ref_logprobs)

    def update_rows(self, rows: LongArray) -> dict[str, float]:
        return self.worker.update_rows(rows)

    def evaluate(self, data: PairSet) -> dict[str, float]:
        return self.worker.evaluate(data)
