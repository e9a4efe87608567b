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
from pathlib import Path
from typing import Any

from ray import ObjectRef

from raylign.actors.waiting import ActorLost
from raylign.algorithms.kl_controller import AdaptiveKL, AnnealedKL, FixedKL
from raylign.config import KLConfig, OnlineAlgorithm, OnlineDPOConfig
from raylign.controllers.commits import MERGED
from raylign.controllers.context import Run
from raylign.controllers.evaluate import Evaluation, evaluate
from raylign.controllers.keeper import Keeper
from raylign.controllers.roles import Roles
from raylign.controllers.sampling import Pending, Sampling
from raylign.controllers.turns import Turns
from raylign.data.sampler import Sampler


class OnlineLoop:
    """State of the loop, and one method for each arrow of the diagram."""

    def __init__(
        self, run: Run, roles: Roles, algorithm: OnlineAlgorithm, prompts: ObjectRef, num_prompts: int
    ) -> None:
        self.run, self.roles, self.algorithm = run, roles, algorithm
        self.sampler = Sampler(num_prompts, algorithm.prompts_per_step, run.config.seed, wrap=True)
        self.kl = FixedKL(0.0) if isinstance(algorithm, OnlineDPOConfig) else kl_controller(algorithm.kl)
        self.step = 0  # finished steps; also the version of the policy
        self.num_batches = 0  # of prompts, learned from: what a resumed run goes on behind
        self.keeper = Keeper(run, roles)
        self.turns = Turns(roles)
        self.sampling = Sampling(run.config, roles, algorithm, prompts, self.turns)

    def train(self, held_out: ObjectRef | None = None, num_held_out: int = 0) -> None:
        """Run until `algorithm.steps`; commit, log and evaluate on the way."""
        algorithm, every = self.algorithm, self.run.config.evaluation and self.run.config.evaluation.every_steps
        in_flight: deque[Pending] = deque()
        submitted = self.step
        while self.step < algorithm.steps:
            start = time.perf_counter()
            while len(in_flight) <= algorithm.max_staleness and submitted < algorithm.steps:
                in_flight.append(self.sampling.submit(submitted, [self.sampler.next()], self.step))
                submitted += 1
            experience, metrics = self.assemble(in_flight.popleft())
            metrics |= self.update(experience)
            self.step += 1
            metrics |= self.sync()
            self.kl.update(metrics.get("kl/k1", 0.0), algorithm.samples_per_step)
            self.run.log(self.step, metrics | self.pop_metrics(time.perf_counter() - start))
            if held_out is not None and every and self.step % every == 0 and self.step < algorithm.steps:
                found = self.evaluate(held_out, num_held_out, f"step {self.step}")
                self.run.tracker.log(self.step, {"evaluation/score": found.score, "evaluation/kl": found.kl or 0.0})
            self.run.commit_if_due(self.step, algorithm.steps, self.save)

    def assemble(self, pending: Pending) -> tuple[ObjectRef, dict[str, float]]:
        """The step's experience; actors that died on the way are replaced and what they had in hand is made again."""
        while True:
            parts = pending.parts
            shards = [ref for refs in parts.values() for ref in refs]
            assemble = self.roles["policy"].head.assemble.options(num_returns=2)
            experience, metrics = assemble.remote(self.kl.coef, tuple(parts), *shards)
            try:
                (found,) = self.keeper.fetch([metrics], "generate", pending.step)
            except ActorLost as lost:
                self.keeper.heal(lost, pending.step)
                pending = self.sampling.redo(pending, self.keeper.dead, self.step)
                continue
            if self._wants_more(found, len(pending.batches)):
                pending = self.sampling.extend(pending, self.sampler.next(), self.step)
            else:
                self.num_batches += len(pending.batches)
                return experience, found

    def _wants_more(self, metrics: dict[str, float], num_batches: int) -> bool:
        """Whether dynamic sampling found too few groups to learn from, and may sample on."""
        groups = metrics.get("rollout/groups", math.inf)
        return groups < self.algorithm.prompts_per_step and num_batches <= self.algorithm.max_extra_batches

    def update(self, experience: ObjectRef) -> dict[str, float]:
        """Policy and critic, where there is one, learn from the same experience at the same time."""
        learners = [role for role in ("policy", "critic") if role in self.roles]
        updates = {role: self.roles[role].submit_all("update", experience) for role in learners}
        found = self.keeper.fetch([ref for refs in updates.values() for ref in refs], "update", self.step)
        metrics = found[0]
        if "critic" in updates:
            of_critic = found[len(updates["policy"])]
            metrics |= {k: v for k, v in of_critic.items() if k.startswith(("critic/", "value/"))}
        return metrics

    def sync(self) -> dict[str, float]:
        """Bring every engine to the policy's version; returns when each that is to serve has acknowledged it."""
        start = time.perf_counter()
        version = self.step
        if version == 0:
            self.turns.give("engines")
            self.keeper.sync(0, lambda engine: engine.use_initial_weights.remote(0))
        else:
            weights = self._weights()
            self.turns.give("engines")
            self.keeper.sync(version, lambda engine: engine.load_weights.remote(version, *weights))
        return {"time/sync": time.perf_counter() - start}

    def _weights(self) -> list[ObjectRef]:
        """The policy's, in the object store: gathered from all ranks where each holds a part."""
        policy, dtype = self.roles["policy"], self.run.config.rollout_dtype
        split = self.run.config.learner.sharding.splits_model
        ref = policy.submit_collective("weights", dtype) if split else policy.head.weights.remote(dtype)
        return self.keeper.fetch([ref], "sync", self.step)[0]

    def evaluate(self, held_out: ObjectRef, num_held_out: int, label: str) -> Evaluation:
        """Score the policy as it is on held-out prompts."""
        return evaluate(self.run, self.roles, held_out, num_held_out, self.step, label, self.keeper)

    def pop_metrics(self, seconds: float) -> dict[str, float]:
        """What the actors counted since the last step, the step's time, and how much of it actors stood idle."""
        counts: dict[str, float] = {}
        for part in self.keeper.pop_metrics(self.step):
            for name, value in part.items():
                if name != "reward/invalid":
                    counts[name] = counts.get(name, 0.0) + value
        busy = sum(value for name, value in counts.items() if name.startswith("time/"))
        num_actors = sum(len(group) for group in self.roles.groups.values())
        return (
            counts
            | self.keeper.pop_counts()
            | {
                "time/step": seconds,
                "time/idle_fraction": max(0.0, 1 - busy / (seconds * num_actors)),
                "throughput/tokens_per_second": counts.get("tokens/generated", 0.0) / seconds,
            }
        )

    def save(self, path: Path) -> dict[str, Any]:
        """Policy and critic write themselves into the commit; returns the loop's own state."""
        self.turns.give("learners")
        learners = [role for role in ("policy", "critic") if role in self.roles]
        saved = [ref for role in learners for ref in self.roles[role].submit_all("save", str(path / role))]
        if self.run.config.model.lora and self.step == self.algorithm.steps:
            saved += self.roles["policy"].submit_all("export_merged", str(path / MERGED))
        self.keeper.fetch(saved, "save", self.step)
        self.turns.give("engines")
        sampler = self.sampler.state() | {"num_batches": self.num_batches}  # samples in flight are drawn again
        return {"sampler": sampler, "kl": self.kl.state()}

    def restore(self, step: int, state: dict[str, Any]) -> None:
        self.step = step
        self.sampler.restore(state["sampler"])
        self.num_batches = self.sampler.num_batches
        self.kl.restore(state["kl"])


def kl_controller(config: KLConfig) -> FixedKL | AdaptiveKL | AnnealedKL:
    match config.controller:
        case "fixed":
            return FixedKL(config.coef)
        case "adaptive":
            return AdaptiveKL(config.coef, config.target, config.horizon)
        case "annealed":
            return AnnealedKL(config.start, config.coef, config.horizon)
