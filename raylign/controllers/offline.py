"""The loop of the algorithms that read a dataset: SFT, reward model, DPO, SimPO, CPO, ORPO, KTO.

    rows -> [reference logprobs, once, cached by content] -> learner.update_rows -> commit

The dataset lies in the object store; the driver sends row numbers. No rollout, reward or critic is placed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef

from raylign.actors.role_groups import OfflineLearnerGroup
from raylign.config import OfflineAlgorithm
from raylign.controllers.context import Run
from raylign.controllers.roles import Roles, required
from raylign.controllers.supervisor import Deadline
from raylign.data.sampler import Sampler
from raylign.storage.commits import MERGED
from raylign.types import FloatArray


class OfflineLoop:
    def __init__(self, run: Run, roles: Roles, algorithm: OfflineAlgorithm, num_rows: int) -> None:
        self.run, self.policy = run, required(roles.policy, OfflineLearnerGroup)
        self.sampler = Sampler(num_rows, algorithm.batch_size, run.config.seed)
        self.num_steps = algorithm.num_steps(num_rows)
        self.step = 0

    def set_data(self, data: ObjectRef, ref_logprobs: tuple[FloatArray, FloatArray] | None) -> None:
        """Hand every rank the dataset, without a copy on the node where it lies."""
        self._fetch(self.policy.submit_data(data, ray.put(ref_logprobs)), "start")

    def accuracy(self, held_out: ObjectRef) -> dict[str, Any]:
        """Return the share of held-out pairs that the reward model orders as the labels do."""
        self.run.view.status("evaluating")
        with self.run.timed("evaluate"):
            (found,) = self._fetch([self.policy.submit_evaluation(held_out)], "generate")
        return {"score": found["reward_model/accuracy"], "kl": None} | found

    def train(self) -> None:
        """Run until the last step; commit and log on the way."""
        while self.step < self.num_steps:
            start = time.perf_counter()
            updates = self.policy.submit_update(self.sampler.next())
            metrics = self._fetch(updates, "update")[0]
            metrics[f"{self.run.config.algorithm.name}/loss"] = metrics.pop("loss")
            self.step += 1
            busy = self._fetch([self.policy.submit_pop_metrics()], "update")[0]
            seconds = time.perf_counter() - start
            rate = {"throughput/tokens_per_second": metrics["tokens/trained"] / seconds}
            self.run.log(self.step, metrics | busy | rate | {"time/step": seconds})
            self.run.commit_if_due(self.step, self.num_steps, self.save)

    def save(self, path: Path) -> dict[str, Any]:
        saved = self.policy.submit_save(str(path / self.policy.role))
        if self.run.config.model.lora and self.step == self.num_steps:
            saved += self.policy.submit_export_merged(str(path / MERGED))
        self._fetch(saved, "save")
        return {"sampler": self.sampler.state()}

    def restore(self, step: int, state: dict[str, Any]) -> None:
        self.step = step
        self.sampler.restore(state["sampler"])

    def _fetch(self, refs: list[ObjectRef], deadline: Deadline) -> list[Any]:
        timeout = getattr(self.run.config.limits, deadline)
        return self.run.waiter.fetch(
            refs, timeout=timeout, waiting_for=f"step {self.step + 1}, {deadline} (limits.{deadline})"
        )
