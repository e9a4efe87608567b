"""Keep the actors of a run alive and its engines at one version: the dead are replaced, within the failure budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from ray import ObjectRef

from raylign.actors.fleet import RolloutFleet
from raylign.actors.waiting import ActorLost
from raylign.controllers.context import Run
from raylign.controllers.roles import Roles, required
from raylign.errors import DeadlineError, FailureBudgetError, Interrupted

MAX_LOSSES = 5  # times that the same work may lose its actor, before the work itself is taken for the cause
_PING = 1.0  # seconds in which a dead actor shows itself; the others may be busy
_POLL = 0.5  # seconds between checks for new engines

Deadline = Literal["start", "generate", "update", "sync", "save"]  # fields of LimitsConfig


class Supervisor:
    """Waits and recovery of a loop: each wait goes through `fetch`, each `ActorLost` that it raises to `recover`.

    A lost learner is not replaced here: the run restarts from its last commit.
    """

    def __init__(self, run: Run, roles: Roles) -> None:
        self.run, self.roles = run, roles
        self.engines = required(roles.rollout, RolloutFleet)
        self.dead: set[str] = set()  # ids of actors that died and have a successor
        self.failures = 0
        self._version = 0
        self._load: Callable[[Any], ObjectRef] = lambda engine: engine.use_initial_weights.remote(0)

    def fetch(
        self, refs: list[ObjectRef], deadline: Deadline, step: int, what: str | None = None, interruptible: bool = False
    ) -> list[Any]:
        """Return the results in order, within `limits.<deadline>`; `step` (steps done), or `what`, is for messages."""
        return self.run.waiter.fetch(
            refs,
            timeout=getattr(self.run.config.limits, deadline),
            waiting_for=f"{what or f'step {step + 1}, {deadline}'} (limits.{deadline})",
            interruptible=interruptible,
            suspects=self._pings,
        )

    def retry_on_actor_loss(
        self,
        submit: Callable[[], list[ObjectRef]],
        deadline: Deadline,
        step: int,
        what: str,
        interruptible: bool = False,
    ) -> list[Any]:
        """Return the results of the calls that `submit` submits; it submits them again if an actor dies meanwhile.

        Raises:
            FailureBudgetError: see `recover`; also if the same work loses one actor after another.
        """
        losses = 0
        while True:
            try:
                return self.fetch(submit(), deadline, step, what, interruptible)
            except ActorLost as lost:
                losses += 1
                if losses > MAX_LOSSES:
                    raise FailureBudgetError(f"{lost}: {losses} actors died on the same work; find the cause") from lost
                self.recover(lost, step)

    def sync(self, version: int, load: Callable[[Any], ObjectRef]) -> None:
        """Bring every engine to `version`; an elastic fleet lets engines join and leave here.

        Args: see `RolloutFleet.sync`.
        Raises:
            DeadlineError: fewer than rollout.elastic.min_engines serve after limits.placement.
        """
        self._version, self._load = version, load
        self.engines.reconcile()
        self._sync()
        self._await_engines()

    def recover(self, lost: ActorLost, step: int) -> None:
        """Replace the dead actors that keep no state, and bring new engines to the version of the others.

        Engines of an elastic fleet do not count against the failure budget.

        Raises:
            FailureBudgetError; `lost` itself, if a learner died, or an actor of nobody here.
        """
        died = set(lost.actor_ids)
        if self.engines.elastic or not died:  # a node that leaves takes several actors at once
            died |= set(self.run.waiter.find_dead(self._pings(), _PING))
        self._replace(died - self.dead, lost, step)
        if not died & self.dead:
            raise lost
        self._sync()
        self._await_engines()

    def pop_metrics(self, step: int) -> list[dict[str, float]]:
        """Return what every actor counted. Actors that died meanwhile are replaced, and their counts are lost."""
        limit = self.run.config.limits.update
        outcomes = self.run.waiter.settle(
            self.roles.submit_pop_metrics(), timeout=limit, waiting_for=f"step {step + 1}, metrics (limits.update)"
        )
        for outcome in outcomes:
            if isinstance(outcome, ActorLost):
                self.recover(outcome, step)
            elif isinstance(outcome, DeadlineError):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, dict)]

    def pop_counts(self) -> dict[str, float]:
        """Return how many engines serve, and how many joined and left since the last call."""
        engines = self.engines
        counts = {
            "rollout/engines": float(engines.num_serving),
            "rollout/joined": float(engines.num_joined),
            "rollout/left": float(engines.num_left),
        }
        if engines.elastic and (engines.num_joined or engines.num_left):
            self.run.view.note(
                f"{engines.num_joined} rollout engines joined, {engines.num_left} left; {engines.num_serving} serve"
            )
        engines.num_joined = engines.num_left = 0
        return counts

    def _replace(self, died: set[str], lost: ActorLost, step: int) -> None:
        for actor_id in died:
            started = self.engines.replace_dead([actor_id])
            if started:
                self.dead.add(actor_id)
            if started and not self.engines.elastic:  # an elastic fleet does not wait for the successor
                self._await_successor(self.engines.role, started, lost, step)
        for group in self.roles.stateless:
            for actor_id in died:
                started = group.replace(actor_id)
                if started is not None:
                    self.dead.add(actor_id)
                    self._await_successor(group.role, [started], lost, step)

    def _await_successor(self, role: str, started: list[ObjectRef], lost: ActorLost, step: int) -> None:
        self._count(lost)
        self.run.view.note(f"{role} actor died at step {step + 1}; replaced, its samples are made again")
        limit = self.run.config.limits.start
        self.run.waiter.fetch(started, timeout=limit, waiting_for=f"restart of {role}")

    def _count(self, lost: ActorLost) -> None:
        self.failures += 1
        limit = self.run.config.limits.max_failures
        if self.failures > limit:
            raise FailureBudgetError(
                f"{lost}: more than limits.max_failures {limit} actors died; "
                "the last commit is intact: find the cause, then continue with --resume"
            )

    def _sync(self) -> None:
        limit = self.run.config.limits.sync
        while True:
            try:
                return self.engines.sync(
                    self._version,
                    self._load,
                    self.run.waiter,
                    timeout=limit,
                    waiting_for=f"version {self._version}, sync (limits.sync)",
                )
            except ActorLost as lost:
                if not set(lost.actor_ids):
                    raise  # the weights were lost with the learner that made them
                self._replace(set(lost.actor_ids) - self.dead, lost, self._version)
                if not set(lost.actor_ids) <= self.dead:
                    raise

    def _await_engines(self) -> None:
        """Wait while fewer engines serve than `min_engines`."""
        elastic, limit = self.engines.elastic, self.run.config.limits.placement
        deadline = time.monotonic() + limit
        while elastic and self.engines.num_serving < elastic.min_engines:
            if self.run.stop.requested:
                raise Interrupted("stopped while it waited for rollout engines; continue with --resume")
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"rollout.elastic.min_engines: {self.engines.num_serving} of {elastic.min_engines} engines serve "
                    f"after limits.placement {limit:g} s (engines: {self.engines.describe()}); add nodes or lower it; "
                    "the last commit is intact: continue with --resume"
                )
            time.sleep(_POLL)
            self.engines.reconcile()
            self._sync()

    def _pings(self) -> list[ObjectRef]:
        return [actor.ping.remote() for group in self.roles.groups for actor in group.actors]
