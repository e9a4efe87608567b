"""One typed group for each role: a method for each call that a loop submits. Every method returns ObjectRefs.

`index` is the number of a shard. The same shard always goes to the same actor, or to all ranks of a split learner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ray import ObjectRef

from raylign.actors.actor_classes import (
    CriticActor,
    OfflineLearnerActor,
    PolicyActor,
    ReferenceActor,
    RewardActor,
    RoleActor,
)
from raylign.actors.group import ActorGroup, LearnerGroup
from raylign.config import CollectConfig
from raylign.types import LongArray


class PolicyGroup(LearnerGroup):
    """The policy of an online algorithm, which learns from its own samples."""

    actor_class: ClassVar[type[RoleActor]] = PolicyActor

    def submit_logprobs(self, index: int, batch: ObjectRef) -> ObjectRef:
        """Score a RolloutBatch under the present weights."""
        answers = [actor.logprobs.remote(batch) for actor in self._ranks_for(index)]
        return answers[0]

    def submit_assemble(self, kl_coef: float, parts: Mapping[str, Sequence[ObjectRef]]) -> tuple[ObjectRef, ObjectRef]:
        """Join the shards of a step; returns its experience and its metrics.

        Args:
            parts: one ref for each shard, under the names of `Samples.join`.
        """
        assemble = self.actors[0].assemble.options(num_returns=2)
        return assemble.remote(kl_coef, tuple(parts), *(ref for refs in parts.values() for ref in refs))

    def submit_update(self, experience: ObjectRef) -> list[ObjectRef]:
        """Learn from the experience of a step on every rank; each returns the same metrics."""
        return [actor.update.remote(experience) for actor in self.actors]

    def submit_weights(self, dtype: str) -> ObjectRef:
        """Put the whole model into the object store, in buckets; returns the list of their refs."""
        answers = [actor.weights.remote(dtype) for actor in self._ranks_for(0)]
        return answers[0]


class OfflineLearnerGroup(LearnerGroup):
    """The learner of an algorithm that reads a dataset: SFT, reward model, DPO and its kin."""

    actor_class: ClassVar[type[RoleActor]] = OfflineLearnerActor

    def submit_data(self, data: ObjectRef, ref_logprobs: ObjectRef) -> list[ObjectRef]:
        """Hand the dataset to every rank, which keeps it (without a copy, on the node where it lies)."""
        return [actor.set_data.remote(data, ref_logprobs) for actor in self.actors]

    def submit_update(self, rows: LongArray) -> list[ObjectRef]:
        """Learn from these rows of the dataset on every rank; each returns the same metrics."""
        return [actor.update_rows.remote(rows) for actor in self.actors]

    def submit_evaluation(self, held_out: ObjectRef) -> ObjectRef:
        """Measure a reward model on held-out pairs."""
        answers = [actor.evaluate.remote(held_out) for actor in self._ranks_for(0)]
        return answers[0]


class CriticGroup(LearnerGroup):
    """The critic of PPO."""

    actor_class: ClassVar[type[RoleActor]] = CriticActor

    def submit_values(self, index: int, batch: ObjectRef) -> ObjectRef:
        """Estimate the value of every token of a RolloutBatch."""
        answers = [actor.values.remote(batch) for actor in self._ranks_for(index)]
        return answers[0]

    def submit_update(self, experience: ObjectRef) -> list[ObjectRef]:
        """Learn from the experience of a step on every rank; each returns the same metrics."""
        return [actor.update.remote(experience) for actor in self.actors]


class ReferenceGroup(ActorGroup):
    """The frozen reference model, whole in each actor."""

    actor_class: ClassVar[type[RoleActor]] = ReferenceActor

    def submit_logprobs(self, index: int, batch: ObjectRef) -> ObjectRef:
        """Score a RolloutBatch."""
        return self[index].logprobs.remote(batch)

    def submit_dataset_logprobs(self, index: int, data: ObjectRef, first: int, last: int) -> ObjectRef:
        """Sum the logprobs of both sides of the dataset's rows from `first` up to `last`."""
        return self[index].dataset_logprobs.remote(data, first, last)


class RewardGroup(ActorGroup):
    """A reward source in each actor: the run's reward, or the evaluator's."""

    actor_class: ClassVar[type[RoleActor]] = RewardActor

    def submit_scores(self, index: int, batch: ObjectRef, prompts: ObjectRef) -> ObjectRef:
        """Score the completions of a RolloutBatch."""
        return self[index].score.remote(batch, prompts)

    def submit_rows_to_keep(
        self,
        index: int,
        batch: ObjectRef,
        prompts: ObjectRef,
        scores: ObjectRef,
        algorithm: CollectConfig,
        seed: int,
        step: int,
    ) -> ObjectRef:
        """Make the dataset rows of a scored RolloutBatch."""
        return self[index].rows_to_keep.remote(batch, prompts, scores, algorithm, seed, step)

    def submit_evaluation_part(
        self,
        index: int,
        batch: ObjectRef,
        prompts: ObjectRef,
        scores: ObjectRef,
        ref_logprobs: ObjectRef | None,
        keep: int,
    ) -> ObjectRef:
        """Reduce a scored RolloutBatch to the numbers of an evaluation and the first `keep` samples."""
        return self[index].evaluation_part.remote(batch, prompts, scores, ref_logprobs, keep)
