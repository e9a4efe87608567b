"""What each role used, read before its actors end: the seconds it was held, and its peak memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import ray
from ray.exceptions import RayError

from raylign.controllers.context import Run
from raylign.controllers.roles import Roles
from raylign.errors import one_line

_TIMEOUT = 20.0  # seconds for idle actors to read one small file
log = logging.getLogger(__name__)


def note_use(run: Run, roles: Roles, phase: Literal["train", "judge"] = "train") -> None:
    """Count the seconds that the actors of `roles` were held for this phase since the last call, and their memory.

    Held is from the reservation of their place on, whether they worked or waited: nobody else could have it.
    """
    now = run.wall()
    for role in roles.groups:
        run.totals[f"held/{phase}/{role}"] += now - roles.since[role]
        roles.since[role] = now
    note_peak_memory(run, roles)


def held(totals: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """For summary.json: seconds by phase and role; `judge` is an evaluation with actors of its own."""
    found: dict[str, dict[str, float]] = {}
    for name, seconds in sorted(totals.items()):
        if name.startswith("held/"):
            _, phase, role = name.split("/")
            found.setdefault(phase, {})[role] = seconds
    return found


def note_peak_memory(run: Run, roles: Roles) -> None:
    """Keep in `run.memory` the largest peak of each role's actors so far, in bytes (see `actors.peak`).

    The work is done by now: an actor that does not answer costs its number, not the run.
    """
    asked = {actor.peak_memory.remote(): role for role, group in roles.groups.items() for actor in group.actors}
    ready, missing = ray.wait(list(asked), num_returns=len(asked), timeout=_TIMEOUT)
    for ref in missing:
        log.warning("peak memory of a %s actor is not known: no answer within %g s", asked[ref], _TIMEOUT)
    for ref in ready:
        try:
            found = ray.get(ref)
        except RayError as e:
            log.warning("peak memory of a %s actor is not known: %s", asked[ref], one_line(e))
            continue
        known = run.memory.setdefault(asked[ref], {})
        for place, peak in found.items():
            known[place] = max(peak, known.get(place, 0))


def summarised(memory: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """For summary.json: `peak_bytes` is of the GPU where a role had one, `host_bytes` of the actor's process."""
    return {
        role: {"peak_bytes": found.get("gpu", found["host"]), "host_bytes": found["host"]}
        for role, found in sorted(memory.items())
    }
