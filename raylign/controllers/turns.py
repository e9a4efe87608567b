"""Colocated engines and learners take turns on their GPUs.

    engines generate | engines sleep, learners wake -> values, logprobs, update, weights | learners sleep, engines wake

Nothing here waits: an actor does what it was asked in order, and who wakes is handed the other side's word that it
sleeps. Where every actor has a place of its own, nothing happens.
"""

from __future__ import annotations

from typing import Literal

from raylign.controllers.roles import Roles

Side = Literal["engines", "learners"]


class Turns:
    """Whose turn it is; the learners are loaded last."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles
        self._now: Side = "learners"

    def give(self, side: Side) -> None:
        """From here on, what is submitted to this side finds it awake, and the other asleep."""
        if not self._roles.take_turns or self._now == side:
            return
        self._now = side
        engines = self._roles["rollout"].actors
        learners = [actor for role in ("policy", "critic") if role in self._roles for actor in self._roles[role].actors]
        sleeping, waking = (learners, engines) if side == "engines" else (engines, learners)
        asleep = [actor.sleep.remote() for actor in sleeping]
        for actor in waking:
            actor.wake.remote(*asleep)
