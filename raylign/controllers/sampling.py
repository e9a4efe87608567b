"""The samples of a step, in parts that are made, scored and, where an actor died, made again by themselves."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import ObjectRef

from raylign.config import OnlineAlgorithm, RunConfig
from raylign.controllers.keeper import MAX_LOSSES
from raylign.controllers.roles import Roles
from raylign.controllers.turns import Turns
from raylign.errors import FailureBudgetError
from raylign.types import LongArray


@dataclass(frozen=True)
class Shard:
    """A part of a step's samples and what is computed from it, as `Samples.join` names it."""

    rows: LongArray  # of the prompts
    salt: int  # stands for the step in the seeds
    refs: dict[str, ObjectRef]
    workers: frozenset[str]  # ids of the actors that make them, but for the learners
    num_losses: int = 0  # how often one of those died


@dataclass(frozen=True)
class Pending:
    """A step whose samples are being made."""

    step: int
    batches: list[LongArray]  # prompt rows; more than one where dynamic sampling asked for more
    shards: list[Shard]

    @property
    def parts(self) -> dict[str, list[ObjectRef]]:
        """The refs of all shards by what they are."""
        return {name: [shard.refs[name] for shard in self.shards] for name in self.shards[0].refs}


class Sampling:
    """Submits everything up to the assembly of a step, without waiting for anything.

    How a step is cut into shards follows from the config alone, never from how many engines there are at the moment, so
    the same samples stand in the same shards whatever becomes of the engines.
    """

    def __init__(
        self, config: RunConfig, roles: Roles, algorithm: OnlineAlgorithm, prompts: ObjectRef, turns: Turns
    ) -> None:
        self.roles, self.algorithm, self.prompts = roles, algorithm, prompts
        self.turns = turns
        self.num_shards = config.num_shards
        self.is_split = config.learner.sharding.splits_model

    def submit(self, step: int, batches: list[LongArray], version: int) -> Pending:
        """A step from the prompts of these batches, by engines of this version."""
        pending = Pending(step, [], [])
        for rows in batches:
            pending = self.extend(pending, rows, version)
        return pending

    def extend(self, pending: Pending, rows: LongArray, version: int) -> Pending:
        """The same step with the samples of one more batch of prompts."""
        parts = []
        for again, part in enumerate(distinct(rows)):
            salt = pending.step + (len(pending.batches) << 48) + (again << 32)  # no two get the same seeds
            parts += [(shard, salt) for shard in np.array_split(part, min(len(part), self.num_shards))]
        shards = self._shards(parts, version, len(pending.shards))
        return Pending(pending.step, [*pending.batches, rows], [*pending.shards, *shards])

    def redo(self, pending: Pending, dead: Collection[str], version: int) -> Pending:
        """The same step with the shards of dead actors made again.

        Raises:
            FailureBudgetError: a shard cost one actor after another; it may be what kills them.
        """
        shards = list(pending.shards)
        for i, shard in enumerate(shards):
            if shard.workers.isdisjoint(dead):
                continue
            losses = shard.num_losses + 1
            if losses > MAX_LOSSES:
                raise FailureBudgetError(
                    f"step {pending.step + 1}: {losses} actors died on the same samples (prompt rows {shard.rows.min()} "
                    f"to {shard.rows.max()}); the last commit is whole: find the cause, then go on with --resume"
                )
            (again,) = self._shards([(shard.rows, shard.salt)], version, i)
            shards[i] = Shard(again.rows, again.salt, again.refs, again.workers, losses)
        return Pending(pending.step, pending.batches, shards)

    def _shards(self, parts: list[tuple[LongArray, int]], version: int, first: int) -> list[Shard]:
        """`first`: number of the first one in its step."""
        roles = self.roles
        self.turns.give("engines")
        jobs = roles["rollout"].submit_parts(self.prompts, parts, self.algorithm.samples_per_prompt, version)
        self.turns.give("learners")
        shards = []
        for i, ((rows, salt), job) in enumerate(zip(parts, jobs, strict=True), start=first):
            batch = job.batch
            refs = {"rollouts": batch, "scores": roles["reward"][i].score.remote(batch, self.prompts)}
            workers = [job.engine, _id(roles["reward"][i])]
            if "reference" in roles:
                refs["ref_logprobs"] = roles["reference"][i].logprobs.remote(batch)
                workers.append(_id(roles["reference"][i]))
            if "critic" in roles:
                refs["values"] = self._learner("critic", "values", i, batch)
            if self.algorithm.recomputes_old_logprobs:
                refs["old_logprobs"] = self._learner("policy", "logprobs", i, batch)
            shards.append(Shard(rows, salt, refs, frozenset(workers)))
        return shards

    def _learner(self, role: str, method: str, i: int, batch: ObjectRef) -> ObjectRef:
        """By all ranks together where each holds a part of the model, else by one after the other in turn."""
        group = self.roles[role]
        if self.is_split:
            return group.submit_collective(method, batch)
        return getattr(group[i], method).remote(batch)


def distinct(rows: LongArray) -> list[LongArray]:
    """The rows in parts in which none stands twice, as it may where a step reaches into the next epoch."""
    parts = []
    while len(rows):
        first = np.sort(np.unique(rows, return_index=True)[1])
        parts.append(rows[first])
        rows = np.delete(rows, first)
    return parts


def _id(actor: Any) -> str:
    return actor._actor_id.hex()
