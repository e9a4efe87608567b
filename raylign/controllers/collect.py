"""Samples of every prompt, scored by the reward source, written as a dataset: pairs, the best of n, or all of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from ray import ObjectRef

from raylign.config import CollectConfig
from raylign.controllers.context import Run
from raylign.controllers.keeper import Keeper
from raylign.controllers.roles import Roles
from raylign.data.sampler import Sampler
from raylign.errors import Interrupted, RaylignError
from raylign.files import write_atomic
from raylign.types import LongArray

Row = dict[str, Any]


def collect(run: Run, roles: Roles, algorithm: CollectConfig, prompts: ObjectRef, num_prompts: int) -> Path:
    """Sample and score until there are `algorithm.rows` rows, or every prompt had its turn if that is None.

    Each step is a file of its own, so nothing is redone.

    Raises:
        RaylignError: a whole pass over the prompts gave no row.
    """
    parts = _parts(run.folder)
    parts.mkdir(exist_ok=True)
    # Batches end with the epoch: the seed of a sample is of (step, prompt, sample), so a prompt that stood twice in one
    # step would give the same completions twice.
    sampler = Sampler(num_prompts, algorithm.batch_size, run.config.seed)
    keeper = Keeper(run, roles)
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
            keeper.sync(0, lambda engine: engine.use_initial_weights.remote(0))
            new = _sample(keeper, algorithm, prompts, prompt_rows, step - 1)
            _write(part, new)
            kept += new
            counted = _sum(keeper.pop_metrics(step - 1)) | keeper.pop_counts()
            seconds = time.perf_counter() - start
            rate = {"throughput/tokens_per_second": counted.get("tokens/generated", 0.0) / seconds}
            run.log(step, _progress(new, len(kept)) | {"time/step": seconds} | counted | rate)
            if run.stop.requested and not _enough(algorithm, len(kept), step, sampler.batches_per_epoch):
                raise Interrupted(f"stopped with {len(kept)} rows; they are kept; go on with --resume")
        last_useful = step if new else last_useful
        if step - last_useful >= sampler.batches_per_epoch:
            raise RaylignError(
                "collect: in a whole pass no prompt gave a usable row (completions not scored, or both of every pair the "
                "same); look at the reward, or raise rollout.sampling.temperature"
            )
    _write(run.folder / algorithm.file_name, kept[: algorithm.rows])
    return run.folder / algorithm.file_name


def num_parts(folder: Path) -> int:
    """Steps of `collect` that were done in this run directory; 0 for other runs."""
    return len(list(_parts(folder).glob("*.jsonl")))


def _parts(folder: Path) -> Path:
    return folder / "parts"


def _enough(algorithm: CollectConfig, num_rows: int, num_steps: int, steps_per_epoch: int) -> bool:
    return num_steps == steps_per_epoch and num_rows > 0 if algorithm.rows is None else num_rows >= algorithm.rows


def _sample(
    keeper: Keeper, algorithm: CollectConfig, prompts: ObjectRef, prompt_rows: LongArray, step: int
) -> list[Row]:
    """Rows of one step; a shard is scored while the next one is generated."""
    roles, config = keeper.roles, keeper.run.config
    shards = np.array_split(prompt_rows, min(len(prompt_rows), config.num_shards))

    def submit() -> list[ObjectRef]:
        jobs = roles["rollout"].submit_parts(
            prompts, [(shard, step) for shard in shards], algorithm.samples_per_prompt, 0
        )
        found = []
        for i, job in enumerate(jobs):
            judge, seed = roles["reward"][i], config.seed + i
            scores = judge.score.remote(job.batch, prompts)
            found.append(judge.rows_to_keep.remote(job.batch, prompts, scores, algorithm, seed, step))
        return found

    return [row for rows in keeper.persist(submit, "generate", step, f"step {step + 1}, generate") for row in rows]


def _progress(new: list[Row], num_rows: int) -> dict[str, float]:
    """Rows so far, and the mean score of the step's completions that were kept."""
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
