"""Every wait of a run goes through here: it has a deadline, and it says what it waits for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from raylign.errors import DeadlineError, Interrupted, RaylignError

_POLL = 0.5  # seconds between looks at the stop request
# Objects that an actor made with ray.put (the policy's weights) are lost with it.
_LOST = (RayActorError, ObjectLostError, WorkerCrashedError, NodeDiedError)


class ActorLost(RaylignError):
    """An actor died. `actor_ids` are the hex ids of those known to be dead (none if Ray did not say)."""

    def __init__(self, message: str, actor_ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.actor_ids = actor_ids


class Stop:
    """A request to end the run, set by a signal handler."""

    requested = False

    def request(self) -> None:
        self.requested = True


class Waiter:
    """Fetches results with a deadline."""

    def __init__(self, stop: Stop | None = None) -> None:
        self.stop = stop or Stop()

    def fetch(
        self, refs: Sequence[ObjectRef], *, timeout: float, waiting_for: str, interruptible: bool = False
    ) -> list[Any]:
        """Results of all refs, in order.

        Args:
            timeout: seconds for all of them together.
            waiting_for: role, phase and step, for the error.
            interruptible: a stop request ends this wait at once (nothing would be lost).
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
                self._value(ready[0], waiting_for)
            elif interruptible and self.stop.requested:
                raise Interrupted(f"{waiting_for}: stopped")
        return [self._value(ref, waiting_for) for ref in refs]

    def _value(self, ref: ObjectRef, waiting_for: str) -> Any:
        try:
            return ray.get(ref)
        except RayError as e:
            raise translate(e, waiting_for) from e


def translate(error: RayError, waiting_for: str) -> Exception:
    """Ray's wrapper -> the error that a role raised, or ActorLost where an actor died (also further up the chain)."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RayTaskError):
            # Before anything else: Ray raises a mixture of this class and the role's own, whose text is a traceback.
            seen = seen.cause
            continue
        if isinstance(seen, RaylignError):
            return seen
        if isinstance(seen, _LOST):
            found = seen.actor_id if isinstance(seen, RayActorError) else None
            first_line = str(seen).strip().splitlines()[0]
            return ActorLost(f"{waiting_for}: an actor died: {first_line}", (found,) if found else ())
        seen = seen.__cause__
    return RaylignError(f"{waiting_for}: {error}")
