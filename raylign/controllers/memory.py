"""Peak memory by role, read before the actors end."""

from __future__ import annotations

import logging

import ray
from ray.exceptions import RayError

from raylign.controllers.context import Run
from raylign.controllers.roles import Roles

_TIMEOUT = 20.0  # seconds for idle actors to read one small file
log = logging.getLogger(__name__)


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
            log.warning("peak memory of a %s actor is not known: %s", asked[ref], str(e).splitlines()[0])
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
