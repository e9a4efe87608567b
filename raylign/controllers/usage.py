"""Resources that each role used, read before its actors end: the seconds it was reserved, and its peak memory."""

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


def note_use(run: Run, roles: Roles, purpose: Literal["train", "evaluation"] = "train") -> None:
    """Count the seconds that the roles were reserved since the last call, and record their peak memory.

    A role is reserved from the moment its place is, whether its actors work or wait: nobody else can have the place.

    Args:
        purpose: evaluation if the actors were launched only to evaluate.
    """
    now = run.wall()
    for group in roles.groups:
        run.totals[f"reserved/{purpose}/{group.role}"] += now - roles.since[group.role]
        roles.since[group.role] = now
    note_peak_memory(run, roles)


def reserved_seconds(totals: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the reserved seconds by purpose and role, for summary.json."""
    by_purpose: dict[str, dict[str, float]] = {}
    for name, seconds in sorted(totals.items()):
        if name.startswith("reserved/"):
            _, purpose, role = name.split("/")
            by_purpose.setdefault(purpose, {})[role] = seconds
    return by_purpose


def note_peak_memory(run: Run, roles: Roles) -> None:
    """Keep in `run.memory` the largest peak of each role's actors so far, in bytes (see `actors.peak`).

    The work is done by now: an actor that does not answer costs its number, not the run.
    """
    calls = {actor.peak_memory.remote(): group.role for group in roles.groups for actor in group.actors}
    ready, missing = ray.wait(list(calls), num_returns=len(calls), timeout=_TIMEOUT)
    for ref in missing:
        log.warning("peak memory of a %s actor is not known: no answer within %g s", calls[ref], _TIMEOUT)
    for ref in ready:
        try:
            peaks = ray.get(ref)
        except RayError as e:
            log.warning("peak memory of a %s actor is not known: %s", calls[ref], one_line(e))
            continue
        known = run.memory.setdefault(calls[ref], {})
        for place, peak in peaks.items():
            known[place] = max(peak, known.get(place, 0))


def summarised(memory: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return the peaks for summary.json: `peak_bytes` of the GPU if a role had one, `host_bytes` of its process."""
    return {
        role: {"peak_bytes": peaks.get("gpu", peaks["host"]), "host_bytes": peaks["host"]}
        for role, peaks in sorted(memory.items())
    }
