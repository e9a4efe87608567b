"""Keeps the actors of a run alive and its engines at one version: who dies is replaced, within the failure budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray import ObjectRef

from raylign.actors.fleet import RolloutFleet
from raylign.actors.waiting import ActorLost
from raylign.controllers.context import Run
from raylign.controllers.roles import Roles
from raylign.errors import DeadlineError, FailureBudgetError, Interrupted

MAX_LOSSES = 5  # times that the same work may cost an actor, before it is taken for what kills them
_STATELESS = ("rollout", "reward", "reference", "evaluator")  # a lost learner takes the run back to its last commit
_PING = 1.0  # seconds for the dead to be told from the busy
_POLL = 0.5  # seconds between looks at engines that are to come


class Keeper:
    """Every wait of a loop goes through `fetch`, and every `ActorLost` that it raises through `heal`."""

    def __init__(self, run: Run, roles: Roles) -> None:
        self.run, self.roles = run, roles
        self.engines: RolloutFleet = roles["rollout"]
        self.dead: set[str] = set()  # ids of actors that died and have a successor
        self.failures = 0
        self._version = 0
        self._load: Callable[[Any], ObjectRef] = lambda engine: engine.use_initial_weights.remote(0)

    def fetch(
        self, refs: list[ObjectRef], phase: str, step: int, what: str | None = None, interruptible: bool = False
    ) -> list[Any]:
        """Results in order, within `limits.<phase>`; `step` (steps done), or `what`, is for messages."""
        return self.run.waiter.fetch(
            refs,
            timeout=getattr(self.run.config.limits, phase),
            waiting_for=f"{what or f'step {step + 1}, {phase}'} (limits.{phase})",
            interruptible=interruptible,
            suspects=self._pings,
        )

    def persist(
        self, submit: Callable[[], list[ObjectRef]], phase: str, step: int, what: str, interruptible: bool = False
    ) -> list[Any]:
        """The results of what `submit` submits, which it does again if an actor dies on the way.

        Raises:
            FailureBudgetError: see `heal`, and for work that actors die of again and again.
        """
        losses = 0
        while True:
            try:
                return self.fetch(submit(), phase, step, what, interruptible)
            except ActorLost as lost:
                losses += 1
                if losses > MAX_LOSSES:
                    raise FailureBudgetError(f"{lost}: the same work cost {losses} actors; find the cause") from lost
                self.heal(lost, step)

    def sync(self, version: int, load: Callable[[Any], ObjectRef]) -> None:
        """Bring every engine to `version`; an elastic fleet lets engines join and leave here.

        Args: see `RolloutFleet.sync`.
        Raises:
            DeadlineError: fewer than rollout.elastic.min_engines serve after limits.placement.
        """
        self._version, self._load = version, load
        self.engines.tend()
        self._sync()
        self._await_engines()

    def heal(self, lost: ActorLost, step: int) -> None:
        """Replace the dead actors that keep no state, and bring new engines to the version of the others.

        The engines of an elastic fleet come and go without being counted.

        Raises:
            FailureBudgetError; `lost` itself, if what died is not ours to mend.
        """
        died = set(lost.actor_ids)
        if self.engines.elastic or not died:  # a machine that leaves takes several at once
            died |= set(self.run.waiter.find_dead(self._pings(), _PING))
        self._replace(died - self.dead, lost, step)
        if not died & self.dead:
            raise lost
        self._sync()
        self._await_engines()

    def pop_metrics(self, step: int) -> list[dict[str, float]]:
        """What every actor counted; those that died meanwhile are replaced, and what they counted is lost."""
        limit = self.run.config.limits.update
        found = self.run.waiter.settle(
            self.roles.pop_metrics(), timeout=limit, waiting_for=f"step {step + 1}, metrics (limits.update)"
        )
        for outcome in found:
            if isinstance(outcome, ActorLost):
                self.heal(outcome, step)
            elif isinstance(outcome, DeadlineError):
                raise outcome
        return [outcome for outcome in found if isinstance(outcome, dict)]

    def pop_counts(self) -> dict[str, float]:
        """Engines that serve, and that joined and left since the last call."""
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
        for role in [role for role in _STATELESS if role in self.roles]:
            for actor_id in died:
                started = self._successors(role, actor_id)
                if not started:
                    continue
                self.dead.add(actor_id)
                if role == "rollout" and self.engines.elastic:
                    continue  # its successor comes when it comes
                self._count(lost)
                self.run.view.note(f"{role} actor died at step {step + 1}; replaced, its samples are made again")
                limit = self.run.config.limits.start
                self.run.waiter.fetch(started, timeout=limit, waiting_for=f"restart of {role}")

    def _successors(self, role: str, actor_id: str) -> list[ObjectRef]:
        """Starts of the actors that take the place of this one; none if it was not of this role."""
        if role == "rollout":
            return self.engines.lose([actor_id])
        started = self.roles[role].replace(actor_id)
        return [] if started is None else [started]

    def _count(self, lost: ActorLost) -> None:
        self.failures += 1
        limit = self.run.config.limits.max_failures
        if self.failures > limit:
            raise FailureBudgetError(
                f"{lost}: more than limits.max_failures {limit} actors died; "
                "the last commit is whole: find the cause, then go on with --resume"
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
                    raise  # the weights went with the learner that made them
                self._replace(set(lost.actor_ids) - self.dead, lost, self._version)
                if not set(lost.actor_ids) <= self.dead:
                    raise

    def _await_engines(self) -> None:
        """With too few engines, wait for more."""
        elastic, limit = self.engines.elastic, self.run.config.limits.placement
        deadline = time.monotonic() + limit
        while elastic and self.engines.num_serving < elastic.min_engines:
            if self.run.stop.requested:
                raise Interrupted("stopped while it waited for rollout engines; go on with --resume")
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"rollout.elastic.min_engines: {self.engines.num_serving} of {elastic.min_engines} engines serve "
                    f"after limits.placement {limit:g} s (engines: {self.engines.describe()}); add nodes or lower it; "
                    "the last commit is whole: go on with --resume"
                )
            time.sleep(_POLL)
            self.engines.tend()
            self._sync()

    def _pings(self) -> list[ObjectRef]:
        return [actor.ping.remote() for group in self.roles.groups.values() for actor in group.actors]
