"""The fleet of engines on a real local Ray, with workers that have no model."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group_table

from raylign.actors.actor_classes import RolloutActor
from raylign.actors.engine import EngineState
from raylign.actors.fleet import RolloutFleet
from raylign.actors.placement import reserve
from raylign.actors.session import ray_session
from raylign.actors.waiting import ActorLost, Waiter
from raylign.config import ElasticConfig, PlacementConfig, RoleResources, RolloutConfig, SamplingConfig
from raylign.errors import DeadlineError, StaleEngineError
from raylign.types import RolloutBatch
from tests.integration.simulated import until

SIZE = RoleResources(num_cpus=0.1, num_actors=2)
ROWS = np.array([3, 4], dtype=np.int64)


class SmallWorker:
    """Stands where a RolloutWorker does. While `gate` exists, what it names waits; files make it slow from outside."""

    def __init__(self, gate: Path) -> None:
        self.gate, self.version = gate, -1

    def use_initial_weights(self, version: int) -> int:
        if (self.gate / f"sync-{os.getpid()}").exists():
            time.sleep(60)
        self.version = version
        return version

    def generate(self, prompts: Any, rows: np.ndarray, num_samples: int, step: int, version: int) -> RolloutBatch:
        assert version == self.version
        deadline = time.monotonic() + 60
        while (self.gate / "generate").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        size = len(rows) * num_samples
        longs = np.full(size, os.getpid(), dtype=np.int64)
        return RolloutBatch(
            tokens=np.zeros((size, 6), np.int32),
            prompt_lengths=np.full(size, 1, np.int32),
            completion_mask=np.arange(6)[None].repeat(size, 0) >= 1,
            logprobs=np.zeros((size, 6), np.float32),
            finished=np.ones(size, bool),
            prompt_rows=np.repeat(rows, num_samples),
            policy_version=longs,  # tells who made it
        )

    def pop_metrics(self) -> dict[str, float]:
        return {"pid": os.getpid()}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session():
            yield


@pytest.fixture
def waiter():
    return Waiter()


@pytest.fixture
def make(tmp_path, waiter):
    """Started fleets of two engines; afterwards no engine and no place is left."""
    made = []

    def fleet(elastic: ElasticConfig | None = None) -> RolloutFleet:
        placement = reserve({"rollout": SIZE}, PlacementConfig(), 30, waiter)
        rollout = RolloutConfig(sampling=SamplingConfig(max_tokens=16), elastic=elastic)
        one = RolloutFleet("rollout", SIZE, placement.slots("rollout"), 1, rollout)
        made.append((one, placement))
        one.build = partial(SmallWorker, tmp_path)
        waiter.fetch(one.submit_start(), timeout=60, waiting_for="start")
        return one

    yield fleet
    for one, placement in made:
        one.kill()
        placement.release()
    until(lambda: {g["state"] for g in placement_group_table().values()} <= {"REMOVED"}, 20, "end of the places")


def sync(fleet: RolloutFleet, waiter: Waiter, version: int = 0, timeout: float = 30) -> None:
    fleet.sync(
        version, lambda engine: engine.use_initial_weights.remote(version), waiter, timeout=timeout, waiting_for="sync"
    )


def pids(fleet: RolloutFleet) -> list[int]:
    return [int(found["pid"]) for found in ray.get([actor.pop_metrics.remote() for actor in fleet.actors])]


def maker(batch: Any) -> int:
    """Process that made a batch."""
    made: Any = ray.get(batch)
    return int(made.policy_version[0])


def test_an_engine_gets_no_work_before_it_has_the_version(make, waiter):
    fleet = make()
    with pytest.raises(StaleEngineError, match=r"no engine serves policy version 0 \(engines: starting None, starting"):
        fleet.submit(ray.put("prompts"), ROWS, 2, 0, 0)
    sync(fleet, waiter)
    assert fleet.num_serving == 2
    with pytest.raises(StaleEngineError, match=r"version 1 \(engines: serving 0, serving 0\); sync first"):
        fleet.submit(ray.put("prompts"), ROWS, 2, 0, 1)
    batch: Any = ray.get(fleet.submit(ray.put("prompts"), ROWS, 2, 0, 0).batch)
    assert batch.prompt_rows.tolist() == [3, 3, 4, 4]  # all samples of a prompt in one call


def wait_for_work(fleet: RolloutFleet) -> None:
    """Wait until Ray has every result of the engines' work; the fleet only takes note of those that are there."""
    refs = [ref for engine in fleet.engines for ref in engine.work]
    assert ray.wait(refs, num_returns=len(refs), timeout=60)[1] == []


def test_parts_go_where_the_least_is_left_to_do(make, waiter, tmp_path):
    fleet, prompts = make(), ray.put("prompts")
    sync(fleet, waiter)
    one, other = pids(fleet)
    (tmp_path / "generate").touch()
    long = fleet.submit(prompts, np.arange(3), 1, 0, 0)
    short = [fleet.submit(prompts, np.array([row]), 1, 0, 0) for row in (3, 4, 5)]
    (tmp_path / "generate").unlink()
    assert [maker(job.batch) for job in (long, *short)] == [one, other, other, other]
    wait_for_work(fleet)
    parts = [(np.array([6]), 0), (np.arange(7, 10), 0), (np.array([10]), 0)]
    jobs = fleet.submit_parts(prompts, parts, 1, 0)  # the longest first: it has an engine to itself
    assert [maker(job.batch) for job in jobs] == [other, one, other]
    wait_for_work(fleet)
    fleet.submit(prompts, np.array([0]), 1, 0, 0)
    assert fleet.engines[0].load == pytest.approx(5)  # the completions of row 0 had 5 tokens, not 16


def test_an_engine_that_is_drained_finishes_what_it_has(make, waiter, tmp_path):
    fleet = make(ElasticConfig(min_engines=1, max_engines=1))  # one of two is over
    sync(fleet, waiter)
    (tmp_path / "generate").touch()
    jobs = fleet.submit_parts(ray.put("prompts"), [(ROWS, 0), (ROWS + 2, 0)], 1, 0)
    fleet.reconcile()
    assert [engine.state for engine in fleet.engines] == [EngineState.SERVING, EngineState.DRAINING]
    assert fleet.submit(ray.put("prompts"), ROWS, 1, 0, 0).engine == fleet.engines[0].id
    (tmp_path / "generate").unlink()
    assert [len(batch) for batch in ray.get([job.batch for job in jobs])] == [2, 2]
    until(lambda: fleet.reconcile() or len(fleet.engines) == 1, 20, "end of the drained engine")
    assert (fleet.num_serving, fleet.num_left) == (1, 1)


def test_an_elastic_fleet_drops_an_engine_that_is_slow(make, waiter, tmp_path):
    fleet = make(ElasticConfig(min_engines=1, max_engines=2))
    sync(fleet, waiter)
    slow = pids(fleet)[0]
    (tmp_path / f"sync-{slow}").touch()
    sync(fleet, waiter, 1, timeout=2)
    assert (fleet.num_serving, fleet.num_left) == (1, 1)
    until(lambda: sync(fleet, waiter, 1) or fleet.num_serving == 2, 40, "successor")
    assert slow not in pids(fleet)
    assert fleet.num_joined == 1


def test_in_another_fleet_all_must_come(make, waiter, tmp_path):
    fleet = make()
    sync(fleet, waiter)
    (tmp_path / f"sync-{pids(fleet)[0]}").touch()
    with pytest.raises(DeadlineError, match=r"^sync: not within 2 s"):
        sync(fleet, waiter, 1, timeout=2)
    assert [engine.state for engine in fleet.engines] == [EngineState.SYNCING, EngineState.SERVING]


def test_engines_join_while_there_is_room_and_only_in_time(make, waiter):
    fleet = make(ElasticConfig(min_engines=1, max_engines=4))
    sync(fleet, waiter)
    begin = time.monotonic()
    fleet.reconcile()
    assert time.monotonic() - begin < 1  # it waits for nothing
    assert fleet.num_serving == 2
    until(
        lambda: fleet.reconcile() or [e.state for e in fleet.engines][2:] == [EngineState.SYNCING] * 2, 60, "two more"
    )
    assert fleet.num_serving == 2  # loaded, and yet without the version
    sync(fleet, waiter, 1)
    assert (fleet.num_serving, fleet.num_joined) == (4, 2)
    assert len(set(pids(fleet))) == 4


def test_a_dead_engine_is_told_from_lost_weights(make, waiter):
    """An engine that dies as it is synced is dropped; weights that cannot be had are nobody's death."""
    fleet = make(ElasticConfig(min_engines=1, max_engines=2))
    sync(fleet, waiter)
    victim = fleet.engines[0]
    os.kill(pids(fleet)[0], signal.SIGKILL)
    sync(fleet, waiter, 1)
    assert fleet.num_serving == 1
    assert victim.state is EngineState.DEAD
    assert victim not in fleet.engines
    actor_class: Any = RolloutActor
    gone = ray.remote(actor_class).options(num_cpus=0).remote({})
    ray.kill(gone)
    lost = gone.pop_metrics.remote()
    with pytest.raises(ActorLost):
        fleet.sync(2, lambda _: lost, waiter, timeout=30, waiting_for="sync")
    assert victim.id not in {engine.id for engine in fleet.engines}
    assert len(fleet.engines) == 2
