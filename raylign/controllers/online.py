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

from raylign.actors.role_groups import PolicyGroup
from raylign.actors.waiting import ActorLost
from raylign.algorithms.kl_controller import AdaptiveKL, AnnealedKL, FixedKL
from raylign.config import KLConfig, OnlineAlgorithm, OnlineDPOConfig
from raylign.controllers.context import Run
from raylign.controllers.evaluate import Evaluation, evaluate
from raylign.controllers.roles import Roles, required
from raylign.controllers.sampling import Pending, Sampling
from raylign.controllers.supervisor import Supervisor
from raylign.controllers.turns import GpuTurns
from raylign.data.sampler import Sampler
from raylign.storage.commits import MERGED


class OnlineLoop:
    """The loop's state, and a method for each arrow of the diagram."""

    def __init__(
        self, run: Run, roles: Roles, algorithm: OnlineAlgorithm, prompts: ObjectRef, num_prompts: int
    ) -> None:
        self.run, self.roles, self.algorithm = run, roles, algorithm
        self.policy, self.critic = required(roles.policy, PolicyGroup), roles.critic
        self.sampler = Sampler(num_prompts, algorithm.prompts_per_step, run.config.seed, wrap=True)
        self.kl = FixedKL(0.0) if isinstance(algorithm, OnlineDPOConfig) else kl_controller(algorithm.kl)
        self.step = 0  # finished steps; also the version of the policy
        self.num_batches = 0  # of prompts, learned from; a resumed run continues behind them
        self.supervisor = Supervisor(run, roles)
        self.turns = GpuTurns(roles)
        self.sampling = Sampling(run.config, roles, algorithm, prompts, self.turns)

    def train(self, held_out: ObjectRef | None = None, num_held_out: int = 0) -> None:
        """Train until `algorithm.steps`; commit, log and evaluate on the way."""
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
                evaluation = self.evaluate(held_out, num_held_out, f"step {self.step}")
                self.run.tracker.log(self.step, evaluation.step_metrics())
            self.run.commit_if_due(self.step, algorithm.steps, self.save)

    def assemble(self, pending: Pending) -> tuple[ObjectRef, dict[str, float]]:
        """Return the step's experience and metrics. Actors that died meanwhile are replaced, their work is redone."""
        while True:
            experience, metrics_ref = self.policy.submit_assemble(self.kl.coef, pending.parts)
            try:
                (metrics,) = self.supervisor.fetch([metrics_ref], "generate", pending.step)
            except ActorLost as lost:
                self.supervisor.recover(lost, pending.step)
                pending = self.sampling.redo(pending, self.supervisor.dead, self.step)
                continue
            if self._wants_more(metrics, len(pending.batches)):
                pending = self.sampling.extend(pending, self.sampler.next(), self.step)
            else:
                self.num_batches += len(pending.batches)
                return experience, metrics

    def _wants_more(self, metrics: dict[str, float], num_batches: int) -> bool:
        """Return whether dynamic sampling has too few groups to learn from, and may sample further prompts."""
        groups = metrics.get("rollout/groups", math.inf)
        return groups < self.algorithm.prompts_per_step and num_batches <= self.algorithm.max_extra_batches

    def update(self, experience: ObjectRef) -> dict[str, float]:
        """Let policy and critic (if any) learn from the same experience at the same time."""
        policy = self.policy.submit_update(experience)
        critic = self.critic.submit_update(experience) if self.critic is not None else []
        metrics_of_ranks = self.supervisor.fetch([*policy, *critic], "update", self.step)
        metrics = metrics_of_ranks[0]
        if critic:
            critic_metrics = metrics_of_ranks[len(policy)]
            metrics |= {k: v for k, v in critic_metrics.items() if k.startswith(("critic/", "value/"))}
        return metrics

    def sync(self) -> dict[str, float]:
        """Bring every engine to the policy's version; returns when each of them has acknowledged it."""
        start = time.perf_counter()
        version = self.step
        if version == 0:
            self.turns.switch_to("engines")
            self.supervisor.sync(0, lambda engine: engine.use_initial_weights.remote(0))
        else:
            weights = self._weights()
            self.turns.switch_to("engines")
            self.supervisor.sync(version, lambda engine: engine.load_weights.remote(version, *weights))
        return {"time/sync": time.perf_counter() - start}

    def _weights(self) -> list[ObjectRef]:
        """Put the policy's weights into the object store and return refs to their buckets."""
        ref = self.policy.submit_weights(self.run.config.rollout_dtype)
        return self.supervisor.fetch([ref], "sync", self.step)[0]

    def evaluate(self, held_out: ObjectRef, num_held_out: int, label: str) -> Evaluation:
        """Score the present policy on held-out prompts."""
        return evaluate(self.run, self.roles, held_out, num_held_out, self.step, label, self.supervisor)

    def pop_metrics(self, seconds: float) -> dict[str, float]:
        """Return what the actors counted in this step, its time, and the fraction of it that actors stood idle."""
        counts: dict[str, float] = {}
        for part in self.supervisor.pop_metrics(self.step):
            for name, value in part.items():
                if name != "reward/invalid":
                    counts[name] = counts.get(name, 0.0) + value
        busy = sum(value for name, value in counts.items() if name.startswith("time/"))
        num_actors = sum(len(group) for group in self.roles.groups)
        return (
            counts
            | self.supervisor.pop_counts()
            | {
                "time/step": seconds,
                "time/idle_fraction": max(0.0, 1 - busy / (seconds * num_actors)),
                "throughput/tokens_per_second": counts.get("tokens/generated", 0.0) / seconds,
            }
        )

    def save(self, path: Path) -> dict[str, Any]:
        """Write policy and critic into the commit; returns the loop's own state."""
        self.turns.switch_to("learners")
        saved = [ref for group in self.roles.learners for ref in group.submit_save(str(path / group.role))]
        if self.run.config.model.lora and self.step == self.algorithm.steps:
            saved += self.policy.submit_export_merged(str(path / MERGED))
        self.supervisor.fetch(saved, "save", self.step)
        self.turns.switch_to("engines")
        sampler = self.sampler.state() | {"num_batches": self.num_batches}  # samples in flight will be drawn again
        return {"sampler": sampler, "kl": self.kl.state()}

    def restore(self, step: int, state: dict[str, Any]) -> None:
        """Continue after `step`, with the state that `save` returned then."""
        self.step = step
        self.sampler.restore(state["sampler"])
        self.num_batches = self.sampler.num_batches
        self.kl.restore(state["kl"])


def kl_controller(config: KLConfig) -> FixedKL | AdaptiveKL | AnnealedKL:
    """Make the controller of the KL coefficient that the config asks for."""
    match config.controller:
        case "fixed":
            return FixedKL(config.coef)
        case "adaptive":
            return AdaptiveKL(config.coef, config.target, config.horizon)
        case "annealed":
            return AnnealedKL(config.start, config.coef, config.horizon)
