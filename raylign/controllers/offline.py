"""The loop of the algorithms that read a dataset: SFT, reward model, DPO, SimPO, ORPO, KTO.

    rows -> [reference logprobs, once, cached by content] -> learner.update_rows -> commit

The dataset lies in the object store; the driver sends row numbers. No rollout, reward or critic is placed.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from safetensors.numpy import load_file, save_file

from raylign.actors.role_groups import OfflineLearnerGroup, ReferenceGroup
from raylign.config import OfflineAlgorithm, RunConfig
from raylign.controllers.context import Run
from raylign.controllers.roles import Roles, required
from raylign.data.batching import ROWS_PER_REFERENCE_CALL
from raylign.data.sampler import Sampler
from raylign.files import replacing, sha256_of
from raylign.storage.commits import MERGED
from raylign.types import FloatArray, LabelledSet, PairSet


class OfflineLoop:
    def __init__(self, run: Run, roles: Roles, algorithm: OfflineAlgorithm, num_rows: int) -> None:
        self.run, self.policy = run, required(roles.policy, OfflineLearnerGroup)
        self.sampler = Sampler(num_rows, algorithm.batch_size, run.config.seed)
        self.num_steps = algorithm.num_steps(num_rows)
        self.step = 0

    def set_data(self, data: ObjectRef, ref_logprobs: tuple[FloatArray, FloatArray] | None) -> None:
        """Every rank keeps the dataset (without a copy, on the node where it lies)."""
        self._fetch(self.policy.submit_data(data, ray.put(ref_logprobs)), "start")

    def accuracy(self, held_out: ObjectRef) -> dict[str, Any]:
        """Share of held-out pairs that the reward model orders as the labels do."""
        self.run.view.status("evaluating")
        with self.run.stage("evaluate"):
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

    def _fetch(self, refs: list[ObjectRef], phase: str) -> list[Any]:
        timeout = getattr(self.run.config.limits, phase)
        return self.run.waiter.fetch(
            refs, timeout=timeout, waiting_for=f"step {self.step + 1}, {phase} (limits.{phase})"
        )


def reference_logprobs(
    run: Run, roles: Roles, rows: PairSet | LabelledSet, data: ObjectRef
) -> tuple[FloatArray, FloatArray]:
    """Logprob sums of both sides of `rows` under the reference: [N] each, computed by the reference actors.

    Args:
        data: `rows` in the object store.
    """
    reference = required(roles.reference, ReferenceGroup)
    firsts = range(0, len(rows), ROWS_PER_REFERENCE_CALL)
    run.view.status("scoring the dataset with the reference")
    with run.stage("reference"):
        parts = run.waiter.fetch(
            [
                reference.submit_dataset_logprobs(i, data, first, min(first + ROWS_PER_REFERENCE_CALL, len(rows)))
                for i, first in enumerate(firsts)
            ],
            timeout=run.config.limits.generate,
            waiting_for="reference logprobs of the dataset (limits.generate)",
            interruptible=True,
        )
    one, other = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    return one, other


def cached_logprobs(file: Path) -> tuple[FloatArray, FloatArray] | None:
    """What `cache_logprobs` wrote, if it did."""
    if not file.exists():
        return None
    arrays = load_file(file)
    return arrays["side_0"], arrays["side_1"]


def cache_logprobs(file: Path, logprobs: tuple[FloatArray, FloatArray]) -> None:
    """Keep reference logprobs for the next run on the same rows and reference."""
    with replacing(file) as writing:
        save_file({f"side_{i}": np.ascontiguousarray(side) for i, side in enumerate(logprobs)}, writing)


def reference_key(config: RunConfig, rows: PairSet | LabelledSet) -> str:
    """Hash of all that reference logprobs depend on: tokens, masks, the reference's files, the precision."""
    reference = config.reference or config.model
    quantization = reference.lora.base_quantization if reference.lora else "none"
    digest = hashlib.sha256(f"sides {reference.compute_dtype} {reference.weights_dtype} {quantization}".encode())
    for side in rows.sides:
        for array in (side.tokens.values, side.tokens.offsets, side.completion_mask.values):
            digest.update(np.ascontiguousarray(array).tobytes())
    folder = Path(reference.path)
    if folder.is_dir():
        for file in sorted(folder.glob("*.safetensors")):
            digest.update(bytes.fromhex(sha256_of(file)))
        digest.update((folder / "config.json").read_bytes())
    else:
        digest.update(f"{reference.path} {reference.revision}".encode())
    return digest.hexdigest()[:32]
