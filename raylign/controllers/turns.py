"""Colocated engines and learners take turns on their GPUs.

    engines generate | engines sleep, learners wake -> values, logprobs, update, weights | learners sleep, engines wake

Nothing here waits: an actor executes its calls in order, and the side that wakes is handed refs that resolve when the
other side is asleep. Where every actor has a place of its own, nothing happens.
"""

from __future__ import annotations

from typing import Literal

from raylign.actors.fleet import RolloutFleet
from raylign.actors.group import LearnerGroup
from raylign.controllers.roles import Roles

Side = Literal["engines", "learners"]


class GpuTurns:
    """Which side is awake; at first the learners, which are loaded last."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles
        self._awake: Side = "learners"

    def switch_to(self, side: Side) -> None:
        """Let the calls that are submitted from here on find this side awake, and the other asleep."""
        if not self._roles.take_turns or self._awake == side:
            return
        self._awake = side
        engines: list[LearnerGroup | RolloutFleet] = [self._roles.rollout] if self._roles.rollout is not None else []
        learners: list[LearnerGroup | RolloutFleet] = [*self._roles.learners]
        sleeping, waking = (learners, engines) if side == "engines" else (engines, learners)
        asleep = [ref for group in sleeping for ref in group.submit_sleep()]
        for group in waking:
            group.submit_wake(asleep)
