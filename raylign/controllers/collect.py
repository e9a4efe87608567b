"""Sample every prompt, score the samples with the reward source, and write pairs, the best of n, or all as a dataset."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from ray import ObjectRef

from raylign.actors.fleet import RolloutFleet
from raylign.actors.role_groups import RewardGroup
from raylign.config import CollectConfig
from raylign.controllers.context import Run
from raylign.controllers.roles import Roles, required
from raylign.controllers.supervisor import Supervisor
from raylign.data.sampler import Sampler
from raylign.errors import Interrupted, RaylignError
from raylign.files import write_atomic
from raylign.storage.run_folder import RunFolder
from raylign.types import LongArray

Row = dict[str, Any]


def collect(run: Run, roles: Roles, algorithm: CollectConfig, prompts: ObjectRef, num_prompts: int) -> Path:
    """Sample and score until there are `algorithm.rows` rows, or every prompt was sampled if that is None.

    Each step writes a file of its own, so a resumed run redoes none of them.

    Raises:
        RaylignError: a whole epoch gave no row.
    """
    parts = run.folder.parts
    parts.mkdir(exist_ok=True)
    # Batches end with the epoch: the seed of a sample is of (step, prompt, sample), so a prompt that came twice in
    # one step would give the same completions twice.
    sampler = Sampler(num_prompts, algorithm.batch_size, run.config.seed)
    supervisor = Supervisor(run, roles)
    run.view.status("sampling")
    kept: list[Row] = []
    step, last_useful = 0, 0
    while not _enough(algorithm, len(kept), step, sampler.batches_per_epoch):
        prompt_rows, part = sampler.next(), parts / f"{step:06d}.jsonl"
        step += 1
        if part.exists():
            new = [json.loads(line) for line in part.open()]
            kept += new
        else:
            start = time.perf_counter()
            supervisor.sync(0, lambda engine: engine.use_initial_weights.remote(0))
            new = _sample(supervisor, algorithm, prompts, prompt_rows, step - 1)
            _write(part, new)
            kept += new
            counted = _sum(supervisor.pop_metrics(step - 1)) | supervisor.pop_counts()
            seconds = time.perf_counter() - start
            rate = {"throughput/tokens_per_second": counted.get("tokens/generated", 0.0) / seconds}
            run.log(step, _progress(new, len(kept)) | {"time/step": seconds} | counted | rate)
            if run.stop.requested and not _enough(algorithm, len(kept), step, sampler.batches_per_epoch):
                raise Interrupted(f"stopped with {len(kept)} rows; they are kept; continue with --resume")
        last_useful = step if new else last_useful
        if step - last_useful >= sampler.batches_per_epoch:
            raise RaylignError(
                "collect: in a whole epoch no prompt gave a usable row (completions not scored, or both of every pair the "
                "same); look at the reward, or raise rollout.sampling.temperature"
            )
    dataset = run.folder.dataset(algorithm.file_name)
    _write(dataset, kept[: algorithm.rows])
    return dataset


def num_parts(folder: RunFolder) -> int:
    """Return how many steps of `collect` were done in this run directory; 0 for other runs."""
    return len(list(folder.parts.glob("*.jsonl")))


def _enough(algorithm: CollectConfig, num_rows: int, num_steps: int, steps_per_epoch: int) -> bool:
    return num_steps == steps_per_epoch and num_rows > 0 if algorithm.rows is None else num_rows >= algorithm.rows


def _sample(
    supervisor: Supervisor, algorithm: CollectConfig, prompts: ObjectRef, prompt_rows: LongArray, step: int
) -> list[Row]:
    """Return the rows of one step; a shard is scored while the next one is generated."""
    rollout, reward = required(supervisor.roles.rollout, RolloutFleet), required(supervisor.roles.reward, RewardGroup)
    config = supervisor.run.config
    shards = np.array_split(prompt_rows, min(len(prompt_rows), config.num_shards))

    def submit() -> list[ObjectRef]:
        jobs = rollout.submit_parts(prompts, [(shard, step) for shard in shards], algorithm.samples_per_prompt, 0)
        rows = []
        for i, job in enumerate(jobs):
            scores = reward.submit_scores(i, job.batch, prompts)
            rows.append(reward.submit_rows_to_keep(i, job.batch, prompts, scores, algorithm, config.seed + i, step))
        return rows

    return [
        row
        for rows in supervisor.retry_on_actor_loss(submit, "generate", step, f"step {step + 1}, generate")
        for row in rows
    ]


def _progress(new: list[Row], num_rows: int) -> dict[str, float]:
    """Return how many rows there are so far, and the mean score of the completions that this step kept."""
    scores = [row[name] for row in new for name in ("score", "chosen_score", "rejected_score") if name in row]
    return {"collect/rows": num_rows} | ({"collect/score": sum(scores) / len(scores)} if scores else {})


def _write(path: Path, rows: list[Row]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _sum(parts: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
