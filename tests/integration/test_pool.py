"""Actors kept between runs: the runs are those of fresh actors to the last bit, and nothing is left at the end."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import psutil
import pytest
import ray
import yaml

from raylign import parse_config, run
from raylign.actors.session import ray_session
from raylign.config import RunConfig
from raylign.controllers.pool import actor_pool
from raylign.controllers.run import make_stages

TINY = {
    "task": {"name": "exact", "vocab_size": 3, "length": 2},
    "model": {"path": "task:model", "compute_dtype": "float32"},
    "data": {"path": "task:prompts"},
    "reward": {"type": "task"},
    "rollout": {"engine": "transformers", "sampling": {"max_tokens": 2}},
}


def tiny(folder: Path, name: str, seed: int, algorithm: str = "rloo") -> RunConfig:
    learning = {"name": algorithm, "steps": 2, "prompts_per_step": 4, "optimizer": {"learning_rate": 1e-3}}
    return parse_config({**TINY, "name": name, "seed": seed, "output_dir": str(folder), "algorithm": learning})


def tiny_dpo(folder: Path, name: str, data_seed: int, seed: int = 0) -> RunConfig:
    """DPO on pairs that are sampled with `data_seed`; equal pairs share their reference logprobs."""
    pairs = folder / f"pairs-{data_seed}.yaml"
    collect = {"name": "collect", "rows": 16, "prompts_per_step": 1, "samples_per_prompt": 32}
    pairs.write_text(yaml.safe_dump({**TINY, "name": pairs.stem, "seed": data_seed, "algorithm": collect}))
    learning = {"name": "dpo", "batch_size": 8, "optimizer": {"learning_rate": 1e-3}}
    tree = {**TINY, "name": name, "seed": seed, "output_dir": str(folder), "algorithm": learning}
    return parse_config(tree | {"data": {"path": f"run:{pairs}"}, "reward": None})


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def actor_pids() -> set[int]:
    titles = {p.pid: " ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)}
    return {pid for pid, title in titles.items() if title.startswith("ray::") and "Actor" in title}


@pytest.mark.timeout(300)
def test_runs_in_kept_actors_are_those_of_fresh_ones_and_leave_nothing(tmp_path):
    with ray_session():
        with actor_pool() as pool:
            first = run(tiny(tmp_path, "first", 0), quiet=True, pool=pool)
            kept = actor_pids()
            second = run(tiny(tmp_path, "second", 1), quiet=True, pool=pool)
            assert actor_pids() == kept != set()
            other = run(tiny(tmp_path, "other", 0, "ppo"), quiet=True, pool=pool)  # a critic more: other actors
            assert not actor_pids() & kept
            assert other.summary["steps"] == 2
            last = [psutil.Process(pid) for pid in actor_pids()]
        assert psutil.wait_procs(last, timeout=20)[1] == []
        fresh = run(tiny(tmp_path, "fresh", 1), quiet=True)
        deadline = time.monotonic() + 20
        while ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]:  # Ray counts with a delay
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert weights(second.folder) == weights(fresh.folder)
    assert weights(first.folder) != weights(second.folder)  # negative control: the seed matters


@pytest.mark.timeout(300)
def test_offline_runs_that_release_their_reference_are_kept_for_what_is_left(tmp_path):
    configs = [tiny_dpo(tmp_path, "one", 0), tiny_dpo(tmp_path, "two", 1), tiny_dpo(tmp_path, "three", 1, seed=5)]
    with ray_session():
        make_stages(configs, quiet=True)
        with actor_pool() as pool:
            run(configs[0], quiet=True, pool=pool)
            run(configs[1], quiet=True, pool=pool)  # other pairs: a reference of its own, which the pool does not have
            kept = actor_pids()
            run(
                configs[2], quiet=True, pool=pool
            )  # the same pairs: their logprobs are known, the policy's actor serves
            assert actor_pids() == kept != set()
