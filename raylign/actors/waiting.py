"""Wait for results with a deadline and a description of what is waited for; every wait of a run is made here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from raylign.errors import DeadlineError, Interrupted, RaylignError, one_line

_POLL = 0.5  # seconds between checks of the stop request
_DEATH_SECONDS = 5.0  # that Ray may take to report who died, after an error in a survivor
# Objects that an actor made with ray.put (the policy's weights) are lost with it.
_LOST = (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError)


class ActorLost(RaylignError):
    """Death of an actor. `actor_ids` are the hex ids of the actors known to be dead (none if Ray did not say)."""

    def __init__(self, message: str, actor_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.actor_ids = actor_ids


class Stop:
    """Request to end the run, set by a signal handler."""

    requested = False

    def request(self) -> None:
        self.requested = True


class Waiter:
    """Waits with deadlines, which a stop request may end."""

    def __init__(self, stop: Stop | None = None) -> None:
        self.stop = stop or Stop()

    def fetch(
        self,
        refs: Sequence[ObjectRef],
        *,
        timeout: float,
        waiting_for: str,
        interruptible: bool = False,
        suspects: Callable[[], Sequence[ObjectRef]] = tuple,
    ) -> list[Any]:
        """Return the results of all refs, in order.

        Args:
            timeout: seconds for all of them together.
            waiting_for: role, call and step, for the error.
            interruptible: a stop request ends this wait at once (nothing would be lost).
            suspects: calls to actors whose death may have caused an error that names no actor.
        Raises:
            DeadlineError, ActorLost, Interrupted; a RaylignError that a role raised comes through as itself.
        """
        deadline = time.monotonic() + timeout
        pending = list(refs)
        while pending:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineError(
                    f"{waiting_for}: {len(pending)} of {len(refs)} results missing after {timeout:g} s; "
                    "raise the limit in `limits`, or look for a stuck actor in the Ray logs"
                )
            ready, pending = ray.wait(pending, num_returns=1, timeout=min(left, _POLL))
            if ready:
                try:
                    self._value(ready[0], waiting_for)
                except RaylignError as e:
                    raise self._cause(e, pending, suspects, waiting_for) from e.__cause__
            elif interruptible and self.stop.requested:
                raise Interrupted(f"{waiting_for}: stopped")
        return [self._value(ref, waiting_for) for ref in refs]

    def settle(self, refs: Sequence[ObjectRef], *, timeout: float, waiting_for: str) -> list[Any]:
        """Return the outcome of each ref, in order: its value, the ActorLost, or a DeadlineError if it is late.

        Args: see `fetch`. An error that a role raised on purpose is raised here too.
        """
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=timeout) if refs else ([], [])
        in_time, outcomes = set(ready), []
        for ref in refs:
            try:
                late = DeadlineError(f"{waiting_for}: not within {timeout:g} s; raise the limit in `limits`")
                outcomes.append(self._value(ref, waiting_for) if ref in in_time else late)
            except ActorLost as lost:
                outcomes.append(lost)
        return outcomes

    def find_dead(self, pings: Sequence[ObjectRef], within: float) -> tuple[str, ...]:
        """Return the ids of the actors that turn out to be dead within so many seconds; the others may be busy."""
        deadline, pending, dead = time.monotonic() + within, list(pings), []
        while pending and (left := deadline - time.monotonic()) > 0:
            ready, pending = ray.wait(pending, num_returns=1, timeout=left)
            for ref in ready:
                try:
                    self._value(ref, "ping")
                except ActorLost as lost:
                    dead += lost.actor_ids
                    # Ray reports deaths that happen together within a moment.
                    deadline = min(deadline, time.monotonic() + _POLL)
                except RaylignError:
                    continue  # alive: it raised an error of its own
        return tuple(dict.fromkeys(dead))

    def _cause(
        self,
        error: RaylignError,
        pending: Sequence[ObjectRef],
        suspects: Callable[[], Sequence[ObjectRef]],
        waiting_for: str,
    ) -> RaylignError:
        """Return the error, or the death that caused it.

        A survivor of a broken torch.distributed world raises an error before Ray reports who died, and the error of an
        object that was lost with its node does not name its owner.
        """
        anonymous = isinstance(error, ActorLost) and not error.actor_ids
        if type(error) is not RaylignError and not anonymous:
            return error
        dead = self.find_dead([*pending, *suspects()], _DEATH_SECONDS)
        return ActorLost(f"{waiting_for}: an actor died, which caused: {error}", dead) if dead else error

    def _value(self, ref: ObjectRef, waiting_for: str) -> Any:
        try:
            return ray.get(ref)
        except RayError as e:
            raise translate(e, waiting_for) from e


def translate(error: RayError, waiting_for: str) -> Exception:
    """Unwrap Ray's error: the error that a role raised, or ActorLost if an actor died (also further up the chain)."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RayTaskError):
            # First of all: Ray raises a mixture of this class and the role's own, whose text is a traceback.
            seen = seen.cause
            continue
        if isinstance(seen, RaylignError):
            return seen
        if isinstance(seen, _LOST):
            actor_id = seen.actor_id if isinstance(seen, RayActorError) else None
            return ActorLost(f"{waiting_for}: an actor died: {one_line(seen)}", (actor_id,) if actor_id else ())
        seen = seen.__cause__
    return RaylignError(f"{waiting_for}: {error}")
