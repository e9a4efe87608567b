"""Samples of every prompt, scored by the reward source, written as a dataset: pairs, the best of n, or all of them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from ray import ObjectRef

from raylign.config import CollectConfig
from raylign.controllers.context import Run
from raylign.controllers.roles import Roles
from raylign.data.sampler import Sampler
from raylign.errors import Interrupted, RaylignError

PREFERENCES = "preferences.jsonl"


def collect(run: Run, roles: Roles, algorithm: CollectConfig, prompts: ObjectRef, num_prompts: int) -> Path:
    """Sample and score until `algorithm.rows` rows are written; each step is a file of its own, so nothing is redone.

    Raises:
        RaylignError: a whole pass over the prompts gave no row.
    """
    config, limits = run.config, run.config.limits
    parts = run.folder / "parts"
    parts.mkdir(exist_ok=True)
    batch_size = min(algorithm.prompts_per_step, -(-algorithm.rows // algorithm.rows_per_prompt))
    sampler = Sampler(num_prompts, batch_size, config.seed, wrap=True)
    engines = roles["rollout"].actors
    run.waiter.fetch(
        [e.use_initial_weights.remote(0) for e in engines], timeout=limits.sync, waiting_for="sync (limits.sync)"
    )
    num_rows, step, barren = 0, 0, 0
    while num_rows < algorithm.rows:
        start = time.perf_counter()
        rows, part = sampler.next(), parts / f"{step:06d}.jsonl"
        if not part.exists():
            shards = np.array_split(rows, min(len(rows), max(config.rollout.shards_per_step, len(engines))))
            kept = []
            for i, shard in enumerate(shards):
                batch = roles["rollout"][i].generate.remote(prompts, shard, algorithm.samples_per_prompt, step, 0)
                scores = roles["reward"][i].score.remote(batch, prompts)
                kept.append(
                    roles["reward"][i].rows_to_keep.remote(batch, prompts, scores, algorithm, config.seed + i, step)
                )
            found = run.waiter.fetch(
                kept, timeout=limits.generate, waiting_for=f"step {step + 1}, generate (limits.generate)"
            )
            _write(part, [row for rows in found for row in rows])
        num_new = sum(1 for _ in part.open())
        num_rows, step = num_rows + num_new, step + 1
        barren = 0 if num_new else barren + 1
        if barren > sampler.batches_per_epoch:
            raise RaylignError(
                "collect: no prompt gave a usable row (completions not scored, or the two of a pair equal); look at the reward, "
                "raise rollout.sampling.temperature, or set algorithm.drop_identical: false"
            )
        counted = _sum(run.waiter.fetch(roles.pop_metrics(), timeout=limits.update, waiting_for="metrics"))
        seconds = time.perf_counter() - start
        rate = {"throughput/tokens_per_second": counted.get("tokens/generated", 0.0) / seconds}
        run.log(step, {"collect/rows": float(num_rows), "time/step": seconds} | counted | rate)
        if run.stop.requested and num_rows < algorithm.rows:
            raise Interrupted(f"stopped with {num_rows} of {algorithm.rows} rows; kept; go on with --resume")
    rows = [json.loads(line) for part in sorted(parts.glob("*.jsonl")) for line in part.open()]
    _write(run.folder / PREFERENCES, rows[: algorithm.rows])
    return run.folder / PREFERENCES


def _write(path: Path, rows: list[dict]) -> None:
    writing = path.with_suffix(".writing")
    writing.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    writing.replace(path)


def _sum(parts: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
