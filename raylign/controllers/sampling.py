"""Submit the samples of a step in shards; each is made, scored and, if an actor died, made again by itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from ray import ObjectRef

from raylign.actors.fleet import RolloutFleet
from raylign.actors.role_groups import PolicyGroup, RewardGroup
from raylign.config import OnlineAlgorithm, RunConfig
from raylign.controllers.roles import Roles, required
from raylign.controllers.supervisor import MAX_LOSSES
from raylign.controllers.turns import GpuTurns
from raylign.errors import FailureBudgetError
from raylign.types import LongArray


@dataclass(frozen=True)
class Shard:
    """Part of a step's samples, and all that is computed from it, under the names of `Samples.join`."""

    rows: LongArray  # rows of its prompts
    salt: int  # takes the place of the step in the seeds
    refs: dict[str, ObjectRef]
    workers: frozenset[str]  # ids of the actors that make it, except learners
    num_losses: int = 0  # deaths of its workers so far


@dataclass(frozen=True)
class Pending:
    """Step whose samples are being made."""

    step: int
    batches: list[LongArray]  # prompt rows; several if dynamic sampling needed more
    shards: list[Shard]

    @property
    def parts(self) -> dict[str, list[ObjectRef]]:
        """Refs of all shards under each name."""
        return {name: [shard.refs[name] for shard in self.shards] for name in self.shards[0].refs}


class Sampling:
    """Submission of everything up to the assembly of a step, without waiting for anything.

    The config alone decides how a step is cut into shards, never the present number of engines, so the same samples are
    in the same shards whatever happens to the engines.
    """

    def __init__(
        self, config: RunConfig, roles: Roles, algorithm: OnlineAlgorithm, prompts: ObjectRef, turns: GpuTurns
    ) -> None:
        self.algorithm, self.prompts, self.turns = algorithm, prompts, turns
        self.num_shards = config.num_shards
        self.rollout, self.reward = required(roles.rollout, RolloutFleet), required(roles.reward, RewardGroup)
        self.policy = required(roles.policy, PolicyGroup)
        self.critic, self.reference = roles.critic, roles.reference

    def submit(self, step: int, batches: list[LongArray], version: int) -> Pending:
        """Submit a step over the prompts of these batches, to engines of this version."""
        pending = Pending(step, [], [])
        for rows in batches:
            pending = self.extend(pending, rows, version)
        return pending

    def extend(self, pending: Pending, rows: LongArray, version: int) -> Pending:
        """Add the samples of one more batch of prompts to the step."""
        parts = []
        for again, part in enumerate(distinct(rows)):
            salt = pending.step + (len(pending.batches) << 48) + (again << 32)  # no two get the same seeds
            parts += [(shard, salt) for shard in np.array_split(part, min(len(part), self.num_shards))]
        shards = self._shards(parts, version, len(pending.shards))
        return Pending(pending.step, [*pending.batches, rows], [*pending.shards, *shards])

    def redo(self, pending: Pending, dead: Collection[str], version: int) -> Pending:
        """Submit the shards of dead actors again; returns the step with their new refs.

        Raises:
            FailureBudgetError: a shard lost one actor after another, so it may be the cause.
        """
        shards = list(pending.shards)
        for i, shard in enumerate(shards):
            if shard.workers.isdisjoint(dead):
                continue
            losses = shard.num_losses + 1
            if losses > MAX_LOSSES:
                raise FailureBudgetError(
                    f"step {pending.step + 1}: {losses} actors died on the same samples (prompt rows {shard.rows.min()} "
                    f"to {shard.rows.max()}); the last commit is intact: find the cause, then continue with --resume"
                )
            (again,) = self._shards([(shard.rows, shard.salt)], version, i)
            shards[i] = Shard(again.rows, again.salt, again.refs, again.workers, losses)
        return Pending(pending.step, pending.batches, shards)

    def _shards(self, parts: list[tuple[LongArray, int]], version: int, first: int) -> list[Shard]:
        """Submit the shards of these parts; `first` is the number of the first one in its step."""
        self.turns.switch_to("engines")
        jobs = self.rollout.submit_parts(self.prompts, parts, self.algorithm.samples_per_prompt, version)
        self.turns.switch_to("learners")
        shards = []
        for i, ((rows, salt), job) in enumerate(zip(parts, jobs, strict=True), start=first):
            batch = job.batch
            refs = {"rollouts": batch, "scores": self.reward.submit_scores(i, batch, self.prompts)}
            workers = [job.engine, self.reward.id_of(i)]
            if self.reference is not None:
                refs["ref_logprobs"] = self.reference.submit_logprobs(i, batch)
                workers.append(self.reference.id_of(i))
            if self.critic is not None:
                refs["values"] = self.critic.submit_values(i, batch)
            if self.algorithm.recomputes_old_logprobs:
                refs["old_logprobs"] = self.policy.submit_logprobs(i, batch)
            shards.append(Shard(rows, salt, refs, frozenset(workers)))
        return shards


def distinct(rows: LongArray) -> list[LongArray]:
    """Split the rows into parts without repetitions; a row is repeated if a step reaches into the next epoch."""
    parts = []
    while len(rows):
        first = np.sort(np.unique(rows, return_index=True)[1])
        parts.append(rows[first])
        rows = np.delete(rows, first)
    return parts
