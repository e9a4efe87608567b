"""The PPO loop.

    prompts -> rollout.generate -> RolloutBatch
                |-> reward.score          -> scores
                |-> reference.logprobs    -> ref_logprobs
                |-> critic.values         -> values
                |-> policy.logprobs       -> old_logprobs (unless the engine's own serve)
    policy.assemble -> Experience -> policy.update, critic.update -> weights v+1 -> rollout.load -> commit

| actor     | waits for                     | then works while                          |
| --------- | ----------------------------- | ----------------------------------------- |
| rollout   | the weights of its version    | the shards before are scored              |
| reward, reference, critic | a generated shard | the next shard is generated           |
| policy    | all shards of a step          | the critic updates                        |

Every arrow is an ObjectRef; the driver holds refs and scalars. With `max_staleness: k` the samples of the next k
steps are submitted before the update, so engines and learners work at the same time.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import ObjectRef

from raylign.actors.waiting import ActorLost
from raylign.algorithms.kl import AdaptiveKL, FixedKL
from raylign.config import KLConfig, PPOConfig
from raylign.controllers.context import Run
from raylign.controllers.evaluate import evaluate
from raylign.controllers.roles import Roles, rollout_dtype
from raylign.data.sampler import Sampler
from raylign.errors import FailureBudgetError
from raylign.types import LongArray


@dataclass(frozen=True)
class Pending:
    """A step whose samples are being made: refs, shard by shard."""

    step: int
    rows: LongArray
    version: int
    rollouts: list[ObjectRef]
    scores: list[ObjectRef]
    ref_logprobs: list[ObjectRef]
    values: list[ObjectRef]
    old_logprobs: list[ObjectRef]

    @property
    def parts(self) -> list[ObjectRef]:
        return [*self.rollouts, *self.scores, *self.ref_logprobs, *self.values, *self.old_logprobs]


class PPOLoop:
    """State of the loop, and one method for each arrow of the diagram."""

    def __init__(self, run: Run, roles: Roles, algorithm: PPOConfig, prompts: ObjectRef, num_prompts: int) -> None:
        self.run, self.roles, self.algorithm, self.prompts = run, roles, algorithm, prompts
        self.sampler = Sampler(num_prompts, algorithm.prompts_per_step, run.config.seed, wrap=True)
        self.kl = kl_controller(algorithm.kl)
        self.step = 0  # finished steps; also the version of the policy
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
                in_flight.append(self.submit(submitted, self.sampler.next()))
                submitted += 1
            experience, metrics = self.assemble(in_flight.popleft())
            metrics |= self.update(experience)
            self.step += 1
            metrics |= self.sync()
            self.kl.update(metrics["kl/k1"], algorithm.prompts_per_step * algorithm.samples_per_prompt)
            self.run.log(self.step, metrics | self.pop_metrics(time.perf_counter() - start))
            if held_out is not None and every and self.step % every == 0 and self.step < algorithm.steps:
                label = f"step {self.step}"
                found = evaluate(self.run, self.roles, held_out, num_held_out, self.step, label)
                self.run.tracker.log(self.step, {"evaluation/score": found.score, "evaluation/kl": found.kl or 0.0})
            self.run.commit_if_due(self.step, algorithm.steps, self.save)

    def submit(self, step: int, rows: LongArray) -> Pending:
        """Everything up to the assembly of a step, shard by shard, without waiting for anything."""
        return self._submit(step, rows, self.step)

    def _submit(self, step: int, rows: LongArray, version: int) -> Pending:
        roles, num_samples = self.roles, self.algorithm.samples_per_prompt
        num_shards = min(len(rows), max(self.run.config.rollout.shards_per_step, len(roles["rollout"])))
        rollouts = [
            roles["rollout"][i].generate.remote(self.prompts, shard, num_samples, step, version)
            for i, shard in enumerate(np.array_split(rows, num_shards))
        ]
        learner_scores = self.algorithm.old_logprobs == "learner"
        return Pending(
            step,
            rows,
            version,
            rollouts,
            scores=[roles["reward"][i].score.remote(r, self.prompts) for i, r in enumerate(rollouts)],
            ref_logprobs=[roles["reference"][i].logprobs.remote(r) for i, r in enumerate(rollouts)],
            values=[roles["critic"][i].values.remote(r) for i, r in enumerate(rollouts)],
            old_logprobs=[roles["policy"][i].logprobs.remote(r) for i, r in enumerate(rollouts)]
            if learner_scores
            else [],
        )

    def assemble(self, pending: Pending) -> tuple[ObjectRef, dict[str, float]]:
        """The step's experience; actors that died on the way are replaced and the step's samples made again."""
        while True:
            num_shards = len(pending.rollouts)
            experience, metrics = (
                self.roles["policy"]
                .head.assemble.options(num_returns=2)
                .remote(self.kl.coef, num_shards, *pending.parts)
            )
            try:
                return experience, self._fetch([metrics], "generate", pending.step)[0]
            except ActorLost as lost:
                self.heal(lost)
                pending = self._submit(pending.step, pending.rows, self.step)

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
        """Policy and critic learn from the same experience at the same time."""
        policy = self.roles["policy"].submit_all("update", experience)
        critic = self.roles["critic"].submit_all("update", experience)
        found = self._fetch([*policy, *critic], "update", self.step)
        return found[0] | {k: v for k, v in found[len(policy)].items() if k.startswith(("critic/", "value/"))}

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
        saved = [ref for role in ("policy", "critic") for ref in self.roles[role].submit_all("save", str(path / role))]
        self._fetch(saved, "save", self.step)
        sampler = self.sampler.state() | {"num_batches": self.step}  # samples in flight are drawn again
        return {"sampler": sampler, "kl": self.kl.state()}

    def restore(self, step: int, state: dict[str, Any]) -> None:
        self.step = step
        self.sampler.restore(state["sampler"])
        self.kl.restore(state["kl"])

    def _fetch(self, refs: list[ObjectRef], phase: str, step: int) -> list[Any]:
        timeout = getattr(self.run.config.limits, phase)
        return self.run.waiter.fetch(refs, timeout=timeout, waiting_for=f"step {step + 1}, {phase} (limits.{phase})")


def kl_controller(config: KLConfig) -> FixedKL | AdaptiveKL:
    if config.controller == "fixed":
        return FixedKL(config.coef)
    return AdaptiveKL(config.coef, config.target, config.horizon)
