"""A rollout engine of a fleet: its state, its version of the weights, and the work it has left.

starting -> syncing -> serving -> draining -> dead         any of them -> dead
               ^----------'  (a new version)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ray import ObjectRef
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylign.types import LongArray


class EngineState(Enum):
    STARTING = "starting"  # waits for its place, or loads the model
    SYNCING = "syncing"  # loads the weights of a version
    SERVING = "serving"  # holds its version and gets work
    DRAINING = "draining"  # finishes its work and gets no more
    DEAD = "dead"


_MAY_BECOME = {
    EngineState.STARTING: {EngineState.SYNCING, EngineState.DRAINING, EngineState.DEAD},
    EngineState.SYNCING: {EngineState.SERVING, EngineState.DRAINING, EngineState.DEAD},
    EngineState.SERVING: {EngineState.SYNCING, EngineState.DRAINING, EngineState.DEAD},
    EngineState.DRAINING: {EngineState.DEAD},
    EngineState.DEAD: set(),
}


@dataclass(frozen=True)
class Work:
    """Part of a step that an engine was given."""

    prompts: ObjectRef
    rows: LongArray
    cost: float  # expected tokens


@dataclass
class Engine:
    """Actor, place and state of a rollout engine. A dead engine is never used again: its successor is another `Engine`.

    Args:
        started: ref of its `start` call.
        own: the placement group that was reserved for this engine alone; None for the run's first engines.
        is_new: it joined while the run was in progress and has not served yet.
    """

    actor: Any
    slot: PlacementGroupSchedulingStrategy
    started: ObjectRef | None = None
    own: PlacementGroup | None = None
    is_new: bool = False
    state: EngineState = EngineState.STARTING
    version: int | None = None  # of its weights; None until it has acknowledged one
    work: dict[ObjectRef, Work] = field(default_factory=dict)  # not yet done, by the ref of its lengths

    @property
    def id(self) -> str:
        return self.actor._actor_id.hex()

    @property
    def load(self) -> float:
        """Tokens that it is still expected to sample."""
        return sum(work.cost for work in self.work.values())

    def become(self, state: EngineState) -> None:
        """Change the state. Raises ValueError for a change that the diagram does not show."""
        if state not in _MAY_BECOME[self.state]:
            raise ValueError(f"engine {self.id}: a {self.state.value} engine cannot become {state.value}")
        self.state = state

    def sync(self) -> None:
        """Stop serving until new weights, which are on their way, are acknowledged."""
        if self.state is not EngineState.SYNCING:
            self.become(EngineState.SYNCING)
        self.version = None

    def acknowledge(self, version: int) -> None:
        """Serve `version`, whose weights the engine holds now."""
        self.become(EngineState.SERVING)
        self.version = version
