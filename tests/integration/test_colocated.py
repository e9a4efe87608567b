"""Engines and learners that take turns make the run that engines and learners of their own make."""

from __future__ import annotations

from typing import Any

import pytest

from raylign.actors.fleet import RolloutFleet
from raylign.actors.role_groups import PolicyGroup
from raylign.controllers.roles import Roles
from raylign.controllers.turns import GpuTurns
from tests.integration.small_runs import hashes, metrics

COLOCATED = (
    "placement.mode=colocated",
    "placement.policy.num_actors=1",
    "rollout.engine=transformers",
    "algorithm.steps=2",
)


@pytest.mark.timeout(400)
def test_taking_turns_changes_nothing(workshop):
    apart = workshop.run("ppo", "name=apart", *COLOCATED, "placement.mode=disaggregated")
    together = workshop.run("ppo", "name=together", *COLOCATED)
    assert hashes(together) == hashes(apart)
    assert [m["rollout/engines"] for m in metrics(together)] == [1.0, 1.0]


class Recorder:
    """Stands where an actor handle does and writes down what it was asked; the order is what `GpuTurns` decides."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self._name, self._asked = name, asked

    def __getattr__(self, method: str):
        class Method:
            @staticmethod
            def remote(*arguments: object) -> str:
                self._asked.append(f"{self._name}.{method}({', '.join(map(str, arguments))})")
                return f"{self._name} {method}"

        return Method


class Learners(PolicyGroup):
    def __init__(self, asked: list[str]) -> None:
        self.actors = [Recorder("policy", asked)]


class Engines(RolloutFleet):
    def __init__(self, asked: list[str]) -> None:
        self._recorders = [Recorder("engine", asked)]

    @property
    def actors(self) -> list[Any]:
        return self._recorders


@pytest.mark.parametrize(("mode", "happens"), [("colocated", True), ("disaggregated", False)])
def test_one_side_wakes_when_the_other_says_that_it_sleeps(mode, happens):
    asked: list[str] = []
    nowhere: Any = None
    turns = GpuTurns(Roles(nowhere, policy=Learners(asked), rollout=Engines(asked), mode=mode))
    turns.switch_to("learners")  # they were loaded last
    turns.switch_to("engines")
    turns.switch_to("engines")
    turns.switch_to("learners")
    expected = ["policy.sleep()", "engine.wake(policy sleep)", "engine.sleep()", "policy.wake(engine sleep)"]
    assert asked == (expected if happens else [])
