"""Many learners and many engines on a cluster of several nodes, real but for the engines' model: everything has the
place that the config says, engines come and go, and the run is the one that nothing disturbed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import state as ray_state
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from raylign import parse_config, run
from raylign.config import RunConfig
from raylign.controllers.run import RunResult
from raylign.data.sampler import Sampler
from raylign.errors import DeadlineError
from raylign.rollout.worker import sample_seed
from raylign.tasks.exact import NUM_ROWS
from tests.integration.fake_engine import PACE
from tests.integration.simulated import records, simulated, spot_node, until
from tests.integration.small_runs import metrics, newest_commit

pytestmark = pytest.mark.own_process

STEPS, PROMPTS, SAMPLES = 40, 16, 2
NUM_NODES = 2  # that hold engines alone
GPUS = {"policy": 1.0, "rollout": 0.5}  # of each actor


def config(folder: Path, name: str, num_learners: int, num_engines: int, **rollout: Any) -> RunConfig:
    """Learners fit on the head node alone, which has no GPU left for an engine."""
    fake = "tests.integration.fake_engine"
    return parse_config(
        {
            "name": name,
            "output_dir": str(folder),
            "task": {"name": "exact", "vocab_size": 5, "length": 4, "variant": "eos", "num_prompts": 16},
            "model": {"path": "task:model", "compute_dtype": "float32"},
            "data": {"path": "task:prompts"},
            "reward": {"type": "function", "function": f"{fake}:score", "allow_code": True},
            "learner": {"micro_batch_tokens": 64},
            "rollout": {
                "engine": f"{fake}:FakeEngine",
                "allow_code": True,
                "sampling": {"max_tokens": 4},
                **rollout,
            },
            "placement": {
                "policy": {"num_actors": num_learners, "num_cpus": 2, "num_gpus": GPUS["policy"], "num_threads": 1},
                "rollout": {"num_actors": num_engines, "num_cpus": 0.1, "num_gpus": GPUS["rollout"]},
                "reward": {"num_cpus": 2},
            },
            "algorithm": {
                "name": "rloo",
                "steps": STEPS,
                "prompts_per_step": PROMPTS,
                "samples_per_prompt": SAMPLES,
                "optimizer": {"learning_rate": 1e-2},
                "kl": {"coef": 0.0},
            },
            "checkpoint": {"every_steps": 2},
        }
    )


def learned(result: RunResult) -> tuple[list[dict[str, Any]], str]:
    """What must not depend on who computed it: every metric that is no time and no count of engines, and the weights."""
    rows = [
        {k: v for k, v in row.items() if not k.startswith(("time", "throughput/", "rollout/", "tokens/generated"))}
        for row in metrics(result.folder)
    ]
    return rows, hashlib.sha256((result.folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def check_samples(log: Path, seed: int) -> None:
    """Every sample of every step was made, all those that were made twice are the same, and under one version each."""
    made = [record for record in records(log) if "seeds" in record]
    weights: dict[int, set[int]] = {}
    for record in made:
        assert not record["torch"], "the fake engine's process needs no torch, so it is as light as it says"
        for one in record["seeds"]:
            weights.setdefault(one, set()).add(record["weights"])
    sampler = Sampler(NUM_ROWS["prompts"], PROMPTS, seed, wrap=True)
    expected = {
        sample_seed(seed, step, int(row), sample): step
        for step in range(STEPS)
        for row in sampler.next()
        for sample in range(SAMPLES)
    }
    assert weights.keys() == expected.keys()
    assert all(len(versions) == 1 for versions in weights.values())
    of_step = {step: {v for one, at in expected.items() if at == step for v in weights[one]} for step in range(STEPS)}
    assert all(len(versions) == 1 for versions in of_step.values())
    assert len(set.union(*of_step.values())) == STEPS  # negative control: the weights did change


def alive_actors() -> list[dict[str, Any]]:
    return [a for a in ray_state.actors().values() if a["State"] != "DEAD"]


def check_placement(num_learners: int, num_engines: int) -> None:
    """Actors are where their bundles are, and no node has more of them than it has GPUs."""
    actors = Counter((actor["ActorClassName"], actor["Address"]["NodeID"]) for actor in alive_actors())
    totals = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    head = next(node for node, has in totals.items() if "node:__internal_head__" in has)
    assert actors["PolicyActor", head] == num_learners
    assert actors["RewardActor", head] == 1
    engines = {node: number for (name, node), number in actors.items() if name == "RolloutActor"}
    assert sum(engines.values()) == num_engines
    reserved: Counter[str] = Counter()
    for group in placement_group_table().values():
        if group["state"] == "CREATED":
            for index, node in group["bundles_to_node_id"].items():
                reserved[node] += group["bundles"][index].get("GPU", 0)
    for node, has in totals.items():
        policies = actors["PolicyActor", node]
        used = policies * GPUS["policy"] + engines.get(node, 0) * GPUS["rollout"]
        assert used == reserved[node] <= has.get("GPU", 0)


def check_nothing_left() -> None:
    until(lambda: not alive_actors(), 20, "end of the last actor")
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}
    until(
        lambda: ray.available_resources().get("GPU") == ray.cluster_resources()["GPU"], 20, "GPU given back"
    )  # Ray counts with a delay


def blow(
    cluster: Cluster, node: Any, going: Future[RunResult], folder: Path, num_learners: int, num_engines: int
) -> None:
    """While the run goes on: when all engines serve, take a node away, and then bring another."""
    num_gpus = int(num_engines * GPUS["rollout"]) // NUM_NODES
    on_node = int(num_gpus / GPUS["rollout"])

    def counts(name: str) -> list[float]:
        assert not going.done(), f"the run ended too early: {going.exception()}"
        file = folder / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line)[f"rollout/{name}"] for line in lines if line.endswith("\n")]

    def last_of(name: str) -> float:
        return (counts(name) or [0])[-1]

    until(lambda: last_of("engines") == num_engines, 200, "engines beyond the first")
    check_placement(num_learners, num_engines)
    cluster.remove_node(node)
    until(lambda: sum(counts("left")) == on_node, 60, "engines that left")
    assert num_engines - on_node in counts("engines")
    before = sum(counts("joined"))
    spot_node(cluster, num_gpus)
    until(lambda: last_of("engines") == num_engines, 120, "engines that came back")
    assert sum(counts("joined")) == before + on_node


def check_fleet(tmp_path: Path, num_learners: int, num_engines: int, undisturbed: RunConfig) -> None:
    log = tmp_path / "log"
    log.mkdir()
    head = {"num_cpus": 2 * num_learners + 2, "num_gpus": num_learners}
    with simulated(log, **head) as cluster, ThreadPoolExecutor(1) as threads:
        nodes = [spot_node(cluster, int(num_engines * GPUS["rollout"]) // NUM_NODES) for _ in range(NUM_NODES)]
        (log / PACE).write_text("1.5")
        elastic = {"min_engines": 1, "max_engines": num_engines}
        spot = config(tmp_path, "spot", num_learners, num_engines // 2, elastic=elastic)
        going = threads.submit(run, spot, quiet=True)  # nodes are added in the main thread alone
        try:
            blow(cluster, nodes[0], going, tmp_path / "spot", num_learners, num_engines)
        finally:
            (log / PACE).unlink()
        disturbed = going.result(120)
        check_samples(log, spot.seed)
        check_nothing_left()
        calm = run(undisturbed, quiet=True)
        assert learned(disturbed) == learned(calm)
        check_samples(log, spot.seed)
        check_nothing_left()
        assert {row["rollout/left"] for row in metrics(calm.folder)} == {0}  # negative control


@pytest.mark.timeout(400)
def test_engines_that_come_and_go_change_nothing_in_the_run(tmp_path):
    """Two learners with up to four engines, against a run with one engine that stays."""
    check_fleet(tmp_path, 2, 4, config(tmp_path, "calm", 2, 1, shards_per_step=4))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_eight_learners_and_sixteen_engines(tmp_path):
    """As above, against sixteen engines that stay."""
    check_fleet(tmp_path, 8, 16, config(tmp_path, "calm", 8, 16))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_with_too_few_engines_the_run_ends_and_its_commit_is_whole(tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    with simulated(log, num_cpus=4, num_gpus=1) as cluster, ThreadPoolExecutor(1) as threads:
        node = spot_node(cluster, 1)
        (log / PACE).write_text("0.5")
        spot = config(tmp_path, "spot", 1, 2, elastic={"min_engines": 2, "max_engines": 2})
        spot = spot.model_copy(update={"limits": spot.limits.model_copy(update={"placement": 4.0})})
        gone = threads.submit(
            lambda: (until(lambda: newest_commit(tmp_path / "spot"), 100, "commit"), cluster.remove_node(node))
        )
        with pytest.raises(
            DeadlineError, match=r"^rollout\.elastic\.min_engines: 0 of 2 engines serve after .* 2 starting"
        ):
            run(spot, quiet=True)
        gone.result(1)
        check_nothing_left()
        (log / PACE).unlink()
        spot_node(cluster, 1)
        resumed = run(spot, resume=True, quiet=True)
        calm = run(config(tmp_path, "calm", 1, 1, shards_per_step=2), quiet=True)
        assert learned(resumed) == learned(calm)
