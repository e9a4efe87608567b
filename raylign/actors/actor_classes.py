"""Ray actor classes, one for each role: each method is one call of the plain class.

`start` builds the plain class inside the actor, so that a wrong path or a full disk is reported as that error and not
as the death of an actor. Nothing here imports torch: the driver holds these classes too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray import ObjectRef

from raylign.actors.factories import WorldAddress
from raylign.actors.peak import peak_memory, reset_peak
from raylign.actors.routing import mean_lengths
from raylign.config import CollectConfig
from raylign.types import (
    Dataset,
    Experience,
    FloatArray,
    LabelledSet,
    LongArray,
    PairExperience,
    PairSet,
    PromptSet,
    RolloutBatch,
    Scores,
)

if TYPE_CHECKING:
    import numpy as np

    from raylign.learners.critic import CriticLearner
    from raylign.learners.reference import ReferenceModel
    from raylign.rewards.worker import RewardWorker
    from raylign.rollout.worker import RolloutWorker


class RoleActor:
    """Base of all actors: the calls that each of them answers.

    Args:
        environment: variables that libraries read when they are imported, which is in `start`. (A runtime_env would
            do the same, but makes Ray start a fresh process although it keeps idle ones.)
    """

    worker: Any = None

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)

    def start(self, build: Callable[[], Any]) -> None:
        """Build the plain class, which loads the model."""
        self.worker = None  # an earlier run's, whose memory this one needs
        reset_peak()
        self.worker = build()

    def ping(self) -> None:
        """Return if the actor is alive."""

    def pop_metrics(self) -> dict[str, float]:
        return self.worker.pop_metrics()

    def peak_memory(self) -> dict[str, int]:
        return peak_memory()


class SleepingActor(RoleActor):
    """Actor that leaves its GPU to others between its turns."""

    def sleep(self) -> None:
        self.worker.sleep()

    def wake(self, *others_asleep: None) -> None:
        """Take the GPU back.

        Args:
            others_asleep: results of the others' `sleep`, so that Ray runs this call after them.
        """
        self.worker.wake()


class RolloutActor(SleepingActor):
    worker: RolloutWorker

    def use_initial_weights(self, version: int) -> int:
        return self.worker.use_initial_weights(version)

    def load_weights(self, version: int, *buckets: dict[str, np.ndarray]) -> int:
        return self.worker.load_weights(version, *buckets)

    def load_folder(self, version: int, folder: str) -> int:
        return self.worker.load_folder(version, folder)

    def generate(
        self, prompts: PromptSet, rows: LongArray, num_samples: int, step: int, policy_version: int
    ) -> tuple[RolloutBatch, FloatArray]:
        """Return the samples, and the mean length of each prompt's samples."""
        batch = self.worker.generate(prompts, rows, num_samples, step, policy_version)
        return batch, mean_lengths(batch, num_samples)


class RewardActor(RoleActor):
    worker: RewardWorker

    def score(self, batch: RolloutBatch, prompts: PromptSet) -> Scores:
        return self.worker.score(batch, prompts)

    def rows_to_keep(
        self, batch: RolloutBatch, prompts: PromptSet, scores: Scores, algorithm: CollectConfig, seed: int, step: int
    ) -> list[dict[str, Any]]:
        return self.worker.rows_to_keep(batch, prompts, scores, algorithm, seed, step)

    def evaluation_part(
        self, batch: RolloutBatch, prompts: PromptSet, scores: Scores, ref_logprobs: FloatArray | None, keep: int
    ) -> dict[str, Any]:
        return self.worker.evaluation_part(batch, prompts, scores, ref_logprobs, keep)


class ReferenceActor(RoleActor):
    worker: ReferenceModel

    def logprobs(self, batch: RolloutBatch) -> FloatArray:
        return self.worker.logprobs(batch)

    def dataset_logprobs(self, data: PairSet | LabelledSet, first: int, last: int) -> tuple[FloatArray, FloatArray]:
        return self.worker.dataset_logprobs(data, first, last)


class LearnerActor(SleepingActor):
    """Rank of a learner group."""

    def host_meeting(self) -> str:
        from raylign.learners.world import host_meeting

        return host_meeting(ray.util.get_node_ip_address())

    def join(self, build: Callable[..., Any], world: WorldAddress, restore: str | None) -> None:
        self.worker = None
        reset_peak()
        self.worker = build(world=world)
        if restore:
            self.worker.restore(restore)

    def save(self, folder: str) -> None:
        self.worker.save(folder)

    def export_merged(self, folder: str) -> None:
        self.worker.export_merged(folder)


class PolicyActor(LearnerActor):
    """Rank of a policy that learns from its own samples."""

    worker: Any  # PolicyGradientLearner or OnlineDPOLearner

    def weights(self, dtype: str) -> list[ObjectRef]:
        return [ray.put(bucket) for bucket in self.worker.weights(dtype)]

    def logprobs(self, batch: RolloutBatch) -> FloatArray:
        return self.worker.logprobs(batch)

    def assemble(
        self, kl_coef: float, names: tuple[str, ...], *shards: Any
    ) -> tuple[Experience | PairExperience, dict[str, float]]:
        """Join the shards of a step into its experience.

        Args:
            shards: all of the first name, then as many of the second, and so on (Ray resolves top-level refs only).
        """
        size = len(shards) // len(names)
        return self.worker.assemble(kl_coef, {name: shards[i * size : (i + 1) * size] for i, name in enumerate(names)})

    def update(self, experience: Experience | PairExperience) -> dict[str, float]:
        return self.worker.update(experience)


class CriticActor(LearnerActor):
    worker: CriticLearner

    def values(self, batch: RolloutBatch) -> FloatArray:
        return self.worker.values(batch)

    def update(self, experience: Experience) -> dict[str, float]:
        return self.worker.update(experience)


class OfflineLearnerActor(LearnerActor):
    """Rank of a learner that reads a dataset: SFT, DPO, reward model."""

    def set_data(self, data: Dataset, ref_logprobs: tuple[FloatArray, FloatArray] | None = None) -> None:
        self.worker.set_data(data, ref_logprobs)

    def update_rows(self, rows: LongArray) -> dict[str, float]:
        return self.worker.update_rows(rows)

    def evaluate(self, data: PairSet) -> dict[str, float]:
        return self.worker.evaluate(data)
