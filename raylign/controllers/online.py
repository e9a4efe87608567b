"""The loop of PPO, GRPO, RLOO, REINFORCE++ and online DPO.

    prompts -> rollout.generate -> RolloutBatch
                |-> reward.score          -> scores
                |-> reference.logprobs    -> ref_logprobs  (where a KL, or DPO, is measured against it)
                |-> critic.values         -> values        (PPO)
                |-> policy.logprobs       -> old_logprobs  (unless the engine's own serve)
    policy.assemble -> experience -> policy.update, critic.update -> weights v+1 -> rollout.load -> commit

| actor     | waits for                     | then works while                          |
| --------- | ----------------------------- | ----------------------------------------- |
| rollout   | the weights of its version    | the shards before are scored              |
| reward, reference, critic | a generated shard | the next shard is generated           |
| policy    | all shards of a step          | the critic updates                        |

Every arrow is an ObjectRef; the driver holds refs and scalars. With `max_staleness: k` the samples of the next k
steps are submitted before the update, so engines and learners work at the same time.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import ObjectRef

from raylign.actors.waiting import ActorLost
from raylign.algorithms.kl_controller import AdaptiveKL, AnnealedKL, FixedKL
from raylign.config import KLConfig, OnlineAlgorithm
from raylign.controllers.context import Run
from raylign.controllers.evaluate import evaluate
from raylign.controllers.roles import Roles, rollout_dtype
from raylign.data.sampler import Sampler
from raylign.errors import FailureBudgetError
from raylign.types import LongArray


@dataclass(frozen=True)
class Pending:
    """A step whose samples are being made: refs of shards by what they are, as `Samples.join` takes them."""

    step: int
    batches: list[LongArray]  # prompt rows; more than one where dynamic sampling asked for more
    parts: dict[str, list[ObjectRef]]


class OnlineLoop:
    """State of the loop, and one method for each arrow of the diagram."""

    def __init__(
        self, run: Run, roles: Roles, algorithm: OnlineAlgorithm, prompts: ObjectRef, num_prompts: int
    ) -> None:
        self.run, self.roles, self.algorithm, self.prompts = run, roles, algorithm, prompts
        self.sampler = Sampler(num_prompts, algorithm.prompts_per_step, run.config.seed, wrap=True)
        self.kl = FixedKL(0.0) if algorithm.name == "online_dpo" else kl_controller(algorithm.kl)
        self.step = 0  # finished steps; also the version of the policy
        self.num_batches = 0  # of prompts, learned from: what a resumed run goes on behind
        self.failures = 0
        self.replaced: set[str] = set()  # ids of actors that died and have a successor
        self.weights: list[ObjectRef] = []  # of version `step`; empty while it is the engines' initial one

    def train(self, held_out: ObjectRef | None = None, num_held_out: int = 0) -> None:
        """Run until `algorithm.steps`; commit, log and evaluate on the way."""
        algorithm, every = self.algorithm, self.run.config.evaluation and self.run.config.evaluation.every_steps
        in_flight: deque[Pending] = deque()
        submitted = self.step
        while self.step < algorithm.steps:
            start = time.perf_counter()
            while len(in_flight) <= algorithm.max_staleness and submitted < algorithm.steps:
                in_flight.append(self.submit(submitted, [self.sampler.next()]))
                submitted += 1
            experience, metrics = self.assemble(in_flight.popleft())
            metrics |= self.update(experience)
            self.step += 1
            metrics |= self.sync()
            self.kl.update(metrics.get("kl/k1", 0.0), algorithm.prompts_per_step * algorithm.samples_per_prompt)
            self.run.log(self.step, metrics | self.pop_metrics(time.perf_counter() - start))
            if held_out is not None and every and self.step % every == 0 and self.step < algorithm.steps:
                label = f"step {self.step}"
                found = evaluate(self.run, self.roles, held_out, num_held_out, self.step, label)
                self.run.tracker.log(self.step, {"evaluation/score": found.score, "evaluation/kl": found.kl or 0.0})
            self.run.commit_if_due(self.step, algorithm.steps, self.save)

    def submit(self, step: int, batches: list[LongArray]) -> Pending:
        """Everything up to the assembly of a step, shard by shard, without waiting for anything."""
        pending = Pending(step, [], {})
        for rows in batches:
            pending = self._extend(pending, rows)
        return pending

    def _extend(self, pending: Pending, rows: LongArray) -> Pending:
        """The same step with the samples of one more batch of prompts."""
        roles, num_shards = self.roles, max(self.run.config.rollout.shards_per_step, len(self.roles["rollout"]))
        rollouts = []
        for again, part in enumerate(_distinct(rows)):
            salted = pending.step + (len(pending.batches) << 48) + (again << 32)  # no two get the same seeds
            for shard in np.array_split(part, min(len(part), num_shards)):
                engine = roles["rollout"][len(rollouts)]
                num_samples = self.algorithm.samples_per_prompt
                rollouts.append(engine.generate.remote(self.prompts, shard, num_samples, salted, self.step))
        parts = {
            "rollouts": rollouts,
            "scores": [roles["reward"][i].score.remote(r, self.prompts) for i, r in enumerate(rollouts)],
        }
        if "reference" in roles:
            parts["ref_logprobs"] = [roles["reference"][i].logprobs.remote(r) for i, r in enumerate(rollouts)]
        if "critic" in roles:
            parts["values"] = [roles["critic"][i].values.remote(r) for i, r in enumerate(rollouts)]
        if self.algorithm.name != "online_dpo" and self.algorithm.old_logprobs == "learner":
            parts["old_logprobs"] = [roles["policy"][i].logprobs.remote(r) for i, r in enumerate(rollouts)]
        joined = {name: [*pending.parts.get(name, []), *refs] for name, refs in parts.items()}
        return Pending(pending.step, [*pending.batches, rows], joined)

    def assemble(self, pending: Pending) -> tuple[ObjectRef, dict[str, float]]:
        """The step's experience; actors that died on the way are replaced and the step's samples made again."""
        while True:
            names, shards = tuple(pending.parts), [ref for refs in pending.parts.values() for ref in refs]
            assemble = self.roles["policy"].head.assemble.options(num_returns=2)
            experience, metrics = assemble.remote(self.kl.coef, names, *shards)
            try:
                (found,) = self._fetch([metrics], "generate", pending.step)
            except ActorLost as lost:
                self.heal(lost)
                pending = self.submit(pending.step, pending.batches)
                continue
            if self._wants_more(found, len(pending.batches)):
                pending = self._extend(pending, self.sampler.next())
            else:
                self.num_batches += len(pending.batches)
                return experience, found

    def _wants_more(self, metrics: dict[str, float], num_batches: int) -> bool:
        """Whether dynamic sampling found too few groups to learn from, and may sample on."""
        groups = metrics.get("rollout/groups", math.inf)
        return groups < self.algorithm.prompts_per_step and num_batches <= getattr(
            self.algorithm, "dynamic_sampling", 0
        )

    def heal(self, lost: ActorLost) -> None:
        """Replace dead rollout, reward or reference actors, within the failure budget; a lost learner is not ours to mend."""
        self.failures += 1
        limits = self.run.config.limits
        if self.failures > limits.max_failures:
            raise FailureBudgetError(
                f"{lost}: more than limits.max_failures {limits.max_failures} actors died; "
                "the last commit is whole: find the cause, then go on with --resume"
            )
        for role in ("rollout", "reward", "reference", "evaluator"):
            for actor_id in lost.actor_ids:
                started = self.roles[role].replace(actor_id) if role in self.roles else None
                if started is not None:
                    self.replaced.add(actor_id)
                    self.run.view.note(
                        f"{role} actor died at step {self.step + 1}; replaced, its samples are made again"
                    )
                    self.run.waiter.fetch([started], timeout=limits.start, waiting_for=f"restart of {role}")
        if not self.replaced.intersection(lost.actor_ids):
            raise lost
        self.sync()

    def update(self, experience: ObjectRef) -> dict[str, float]:
        """Policy and critic, where there is one, learn from the same experience at the same time."""
        learners = [role for role in ("policy", "critic") if role in self.roles]
        updates = {role: self.roles[role].submit_all("update", experience) for role in learners}
        found = self._fetch([ref for refs in updates.values() for ref in refs], "update", self.step)
        metrics = found[0]
        if "critic" in updates:
            of_critic = found[len(updates["policy"])]
            metrics |= {k: v for k, v in of_critic.items() if k.startswith(("critic/", "value/"))}
        return metrics

    def sync(self) -> dict[str, float]:
        """Bring every engine to the policy's version; returns when each has acknowledged it."""
        start = time.perf_counter()
        engines = self.roles["rollout"].actors
        if self.step == 0:
            acknowledged = [engine.use_initial_weights.remote(0) for engine in engines]
        else:
            (self.weights,) = self._fetch(
                [self.roles["policy"].head.weights.remote(rollout_dtype(self.run.config))], "sync", self.step
            )
            acknowledged = [engine.load_weights.remote(self.step, *self.weights) for engine in engines]
        versions = self._fetch(acknowledged, "sync", self.step)
        assert versions == [self.step] * len(engines), versions
        return {"time/sync": time.perf_counter() - start}

    def pop_metrics(self, seconds: float) -> dict[str, float]:
        """What the actors counted since the last step, the step's time, and how much of it actors stood idle."""
        counts: dict[str, float] = {}
        for part in self._fetch(self.roles.pop_metrics(), "update", self.step):
            for name, value in part.items():
                if name != "reward/invalid":
                    counts[name] = counts.get(name, 0.0) + value
        busy = sum(value for name, value in counts.items() if name.startswith("time/"))
        num_actors = sum(len(group) for group in self.roles.groups.values())
        return counts | {
            "time/step": seconds,
            "time/idle_fraction": max(0.0, 1 - busy / (seconds * num_actors)),
            "throughput/tokens_per_second": counts.get("tokens/generated", 0.0) / seconds,
        }

    def save(self, path: Path) -> dict[str, Any]:
        """Policy and critic write themselves into the commit; returns the loop's own state."""
        learners = [role for role in ("policy", "critic") if role in self.roles]
        saved = [ref for role in learners for ref in self.roles[role].submit_all("save", str(path / role))]
        self._fetch(saved, "save", self.step)
        sampler = self.sampler.state() | {"num_batches": self.num_batches}  # samples in flight are drawn again
        return {"sampler": sampler, "kl": self.kl.state()}

    def restore(self, step: int, state: dict[str, Any]) -> None:
        self.step = step
        self.sampler.restore(state["sampler"])
        self.num_batches = self.sampler.num_batches
        self.kl.restore(state["kl"])

    def _fetch(self, refs: list[ObjectRef], phase: str, step: int) -> list[Any]:
        timeout = getattr(self.run.config.limits, phase)
        return self.run.waiter.fetch(refs, timeout=timeout, waiting_for=f"step {step + 1}, {phase} (limits.{phase})")


def _distinct(rows: LongArray) -> list[LongArray]:
    """The rows in parts in which none stands twice, as it may where a step reaches into the next epoch."""
    parts = []
    while len(rows):
        first = np.sort(np.unique(rows, return_index=True)[1])
        parts.append(rows[first])
        rows = np.delete(rows, first)
    return parts


def kl_controller(config: KLConfig) -> FixedKL | AdaptiveKL | AnnealedKL:
    match config.controller:
        case "fixed":
            return FixedKL(config.coef)
        case "adaptive":
            return AdaptiveKL(config.coef, config.target, config.horizon)
        case "annealed":
            return AnnealedKL(config.start, config.coef, config.horizon)
