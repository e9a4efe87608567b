"""Waiting, placing and replacing actors, on a real local Ray with actors that do almost nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from typing import Any

import psutil
import pytest
import ray

from raylign.actors.placement import reserve
from raylign.actors.role_groups import PolicyGroup, ReferenceGroup, RewardGroup
from raylign.actors.session import ray_session
from raylign.actors.waiting import ActorLost, Stop, Waiter
from raylign.config import PlacementConfig, RoleResources
from raylign.controllers.roles import Roles
from raylign.errors import ConfigError, DataError, DeadlineError, Interrupted, PlacementError, RaylignError
from tests.integration.small_runs import left_behind
from tests.integration.tiny_actor import TinyActor

SMALL = RoleResources(num_cpus=0.25)


class TinyRewards(RewardGroup):
    actor_class = TinyActor


class TinyReference(ReferenceGroup):
    actor_class = TinyActor


class TinyPolicy(PolicyGroup):
    actor_class: Any = TinyActor  # not a LearnerActor by type, so that its process needs no torch


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """One Ray for the file, and proof that nothing of it is left."""
    before = set(children())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session():
            yield
            ours = [process for process in children() if process not in before]
    assert len(ours) > 2, "no Ray was seen, so nothing would be proved"
    assert not ray.is_initialized()
    assert left_behind(ours) == []


@pytest.fixture
def waiter():
    return Waiter()


@pytest.fixture(scope="module")
def shared(local_ray):
    """Two started actors in their own placement."""
    waiter = Waiter()
    resources = SMALL.model_copy(update={"num_actors": 2})
    placement = reserve({"reward": resources}, PlacementConfig(), 30, waiter)
    group = TinyRewards("reward", resources, placement.slots("reward"), 3)
    group.build = partial(int, 7)
    try:
        waiter.fetch(group.submit_start(), timeout=60, waiting_for="start")
        yield group
    finally:
        Roles(placement, reward=group).kill()


@pytest.fixture
def group(shared, waiter):
    """The two actors, alive again for the next test."""
    yield shared
    for actor in list(shared.actors):
        try:
            waiter.fetch([actor.pid.remote()], timeout=30, waiting_for="pid")
        except ActorLost:
            waiter.fetch([shared.replace(actor._actor_id.hex())], timeout=60, waiting_for="start again")


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_results_come_in_order(group, waiter):
    refs = [group[0].sleep.remote(0.2), group[1].number.remote(), group[3].environment.remote("OMP_NUM_THREADS")]
    assert waiter.fetch(refs, timeout=30, waiting_for="all") == ["slept", 7, "3"]
    assert waiter.fetch([], timeout=1, waiting_for="nothing") == []


def test_a_deadline_names_what_was_waited_for(group, waiter):
    refs = [group[1].number.remote(), group[0].sleep.remote(3)]
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"^step 4, generate: 1 of 2 results missing after 1 s; raise the limit"):
        waiter.fetch(refs, timeout=1, waiting_for="step 4, generate")
    assert time.monotonic() - start < 2.5
    assert waiter.fetch(refs, timeout=30, waiting_for="the same, with time") == [7, "slept"]


def test_a_stop_request_ends_a_wait_that_loses_nothing_and_no_other(group):
    stop = Stop()
    waiter = Waiter(stop)
    threading.Timer(0.3, stop.request).start()
    begin = time.monotonic()
    with pytest.raises(Interrupted, match=r"^start: stopped"):
        waiter.fetch([group[0].sleep.remote(3)], timeout=30, waiting_for="start", interruptible=True)
    assert time.monotonic() - begin < 2.5
    assert stop.requested
    assert waiter.fetch([group[1].sleep.remote(1)], timeout=30, waiting_for="update") == ["slept"]


@pytest.mark.parametrize(
    "error",
    [
        DataError("train.jsonl:3: not valid JSON; fix the line"),
        ConfigError(["a.b: first", "a.c: second"]),
        DeadlineError("critic: update"),
    ],
)
def test_an_error_raised_on_purpose_comes_out_as_itself(group, waiter, error):
    with pytest.raises(type(error)) as caught:
        waiter.fetch([group[0].fail.remote(error)], timeout=30, waiting_for="score")
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


def test_an_error_raised_on_purpose_comes_through_a_later_call(group, waiter):
    broken = group[0].fail.remote(DataError("rows:1: wrong"))
    with pytest.raises(DataError, match=r"^rows:1: wrong$"):
        waiter.fetch([group[1].take.remote(broken)], timeout=30, waiting_for="assemble")


def test_any_other_error_is_told_with_its_text(group, waiter):
    with pytest.raises(RaylignError, match=r"^step 2, score: ") as caught:
        waiter.fetch(
            [group[0].fail.remote(ValueError("shape (3,) is not (4,)"))], timeout=30, waiting_for="step 2, score"
        )
    assert type(caught.value) is RaylignError
    assert "ValueError: shape (3,) is not (4,)" in str(caught.value)


def murder(group, waiter, index: int) -> str:
    """SIGKILL an actor, as the kernel does when memory runs out; returns its id."""
    (pid,) = waiter.fetch([group[index].pid.remote()], timeout=30, waiting_for="pid")
    os.kill(pid, signal.SIGKILL)
    return group[index]._actor_id.hex()


def test_an_actor_that_dies_at_work_is_lost_by_its_id(group, waiter):
    dead = murder(group, waiter, 0)
    with pytest.raises(ActorLost, match=r"^step 1, generate: an actor died: ") as caught:
        waiter.fetch([group[1].number.remote(), group[0].sleep.remote(30)], timeout=30, waiting_for="step 1, generate")
    assert caught.value.actor_ids == (dead,)
    assert "\n" not in str(caught.value)


def test_a_dead_actor_is_found_behind_later_calls(group, waiter):
    dead = murder(group, waiter, 0)
    scores = group[1].take.remote(group[0].number.remote())
    assembled = group[1].take.remote(scores)
    with pytest.raises(ActorLost) as caught:
        waiter.fetch([assembled], timeout=30, waiting_for="assemble")
    assert caught.value.actor_ids == (dead,)


def test_objects_that_die_with_their_actor_are_a_lost_actor(group, waiter):
    """Weights belong to the learner that put them, not to the driver."""
    ((weights,),) = waiter.fetch([group[0].put.remote()], timeout=30, waiting_for="weights")
    assert waiter.fetch([group[1].take.remote(weights)], timeout=30, waiting_for="sync") == [1]
    murder(group, waiter, 0)

    def sync_until_noticed() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            waiter.fetch([group[1].take.remote(weights)], timeout=30, waiting_for="sync")

    with pytest.raises(ActorLost):
        sync_until_noticed()


def test_a_replaced_actor_stands_in_the_same_place(group, waiter):
    """Each bundle holds one actor, so in the same placement means in the bundle of the dead one."""
    (place,) = waiter.fetch([group[0].placement.remote()], timeout=30, waiting_for="placement")
    assert place
    old = murder(group, waiter, 0)
    waiter.fetch([group.replace(old)], timeout=60, waiting_for="start again")
    assert group[0]._actor_id.hex() != old
    assert waiter.fetch([group[0].placement.remote()], timeout=30, waiting_for="placement") == [place]
    assert waiter.fetch([actor.number.remote() for actor in group.actors], timeout=30, waiting_for="both") == [7, 7]
    assert group.replace(old) is None  # not ours any more


@pytest.fixture
def room(shared) -> float:
    """CPUs that the shared group leaves, all of them free."""
    cpus = ray.cluster_resources()["CPU"] - 2 * SMALL.num_cpus
    wait_until_free(cpus)
    return cpus


def free() -> float:
    return ray.available_resources().get("CPU", 0.0)


def wait_until_free(cpus: float) -> None:
    deadline = time.monotonic() + 20
    while free() < cpus - 1e-6:
        assert time.monotonic() < deadline, f"{free()} of {cpus} CPUs are free"
        time.sleep(0.05)


def test_what_can_never_fit_is_refused_at_once(waiter):
    start = time.monotonic()
    with pytest.raises(PlacementError, match=r"^placement\.critic \(each actor 1000 CPU\): does not fit: ") as caught:
        reserve({"policy": SMALL, "critic": RoleResources(num_cpus=1000)}, PlacementConfig(), 60, waiter)
    assert "placement.policy" not in str(caught.value)
    many = SMALL.model_copy(update={"num_actors": 4000})
    with pytest.raises(PlacementError, match=r"^placement\.rollout \(4000 x 0\.25 CPU\): .* needs 1000 CPU in all"):
        reserve({"rollout": many}, PlacementConfig(), 60, waiter)
    with pytest.raises(PlacementError, match=r"^placement\.policy \(each actor 0\.5 CPU, 1 GPU\)"):
        reserve({"policy": RoleResources(num_gpus=1)}, PlacementConfig(), 60, waiter)
    with pytest.raises(PlacementError, match=r"^placement\.strategy: STRICT_SPREAD"):
        reserve({"policy": SMALL, "critic": SMALL}, PlacementConfig(strategy="STRICT_SPREAD"), 60, waiter)
    assert time.monotonic() - start < 5


def test_what_an_autoscaling_cluster_could_grow_to_hold_is_waited_for(waiter):
    growing = PlacementConfig(autoscaling=True)
    with pytest.raises(
        PlacementError, match=r"^placement: not reserved within limits\.placement 1 s: .*needs 1000 CPU"
    ):
        reserve({"critic": RoleResources(num_cpus=1000)}, growing, 1, waiter)


def test_a_busy_cluster_is_waited_for_and_then_refused(room, waiter):
    all_of_it = RoleResources(num_cpus=room)
    holder = reserve({"policy": all_of_it}, PlacementConfig(), 30, waiter)
    try:
        with pytest.raises(
            PlacementError, match=r"^placement: not reserved within limits\.placement 1 s: .*free are 0 CPU"
        ):
            reserve({"critic": SMALL}, PlacementConfig(), 1, waiter)
    finally:
        holder.release()
    # Had the refused group stayed, it would hold a quarter of a CPU now.
    wait_until_free(room)
    reserve({"policy": all_of_it}, PlacementConfig(), 30, waiter).release()
    wait_until_free(room)


def test_a_stop_request_ends_the_wait_for_a_place(room):
    stop = Stop()
    holder = reserve({"policy": RoleResources(num_cpus=room)}, PlacementConfig(), 30, Waiter())
    stop.request()
    try:
        with pytest.raises(Interrupted):
            reserve({"critic": SMALL}, PlacementConfig(), 60, Waiter(stop))
    finally:
        holder.release()
    wait_until_free(room)


def test_killing_the_roles_frees_everything(room, waiter):
    placement = reserve({"policy": SMALL, "reference": SMALL}, PlacementConfig(), 30, waiter)
    policy = TinyPolicy("policy", SMALL, placement.slots("policy"), 1)
    reference = TinyReference("reference", SMALL, placement.slots("reference"), 1)
    roles = Roles(placement, policy=policy, reference=reference)
    pids = waiter.fetch([group[0].pid.remote() for group in (policy, reference)], timeout=60, waiting_for="pids")
    assert free() == pytest.approx(room - 0.5)
    roles.dismiss_reference()
    assert roles.reference is None
    assert roles.groups == [policy]
    roles.kill()
    wait_until_free(room)
    assert left_behind([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], grace=10) == []


def test_a_survivor_that_complains_is_not_the_cause(group, waiter):
    """torch.distributed breaks in a survivor before Ray says who died."""
    complaint = group[1].fail.remote(RuntimeError("connection closed by peer"))
    with pytest.raises(RaylignError) as caught:  # negative control: nobody died
        waiter.fetch([complaint], timeout=30, waiting_for="update", suspects=lambda: [group[0].ping.remote()])
    assert type(caught.value) is RaylignError
    dead = murder(group, waiter, 0)
    beside = group[0].number.remote()
    with pytest.raises(ActorLost, match="connection closed by peer") as lost:
        waiter.fetch([complaint, beside], timeout=30, waiting_for="update")
    assert lost.value.actor_ids == (dead,)
    with pytest.raises(ActorLost, match="connection closed by peer") as lost:
        waiter.fetch([complaint], timeout=30, waiting_for="assemble", suspects=lambda: [group[0].ping.remote()])
    assert lost.value.actor_ids == (dead,)


def test_what_became_of_each_call(group, waiter):
    fine, slow = group[1].number.remote(), group[1].sleep.remote(30)
    murder(group, waiter, 0)
    begin = time.monotonic()
    value, lost, late = waiter.settle([fine, group[0].number.remote(), slow], timeout=2, waiting_for="sync")
    assert time.monotonic() - begin < 10
    assert value == 7
    assert isinstance(lost, ActorLost)
    assert isinstance(late, DeadlineError)
    assert waiter.settle([], timeout=1, waiting_for="nothing") == []
    ray.kill(group[1])  # it sleeps
