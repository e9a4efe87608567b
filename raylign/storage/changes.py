"""When a run directory still belongs to the run that a config describes."""

from __future__ import annotations

from typing import Any

from raylign.config import RunConfig

RESUMABLE_CHANGES = {"output_dir", "tracking", "limits", "checkpoint", "placement"}
"""Sections that may change between the start of a run and its resumption: they say how to run, not what to compute."""


def differences(then: RunConfig, now: RunConfig) -> list[str]:
    """Return the dotted keys, with both values, whose change makes `now` another run than `then`."""
    before, after = (config.model_dump(mode="json", exclude=RESUMABLE_CHANGES) for config in (then, now))
    return [f"{key} ({old!r} -> {new!r})" for key, old, new in differing(before, after)]


def differing(one: Any, other: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value in one, value in the other) of all values that differ, as deep as both have keys."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [d for k in keys for d in differing(one.get(k), other.get(k), f"{at}.{k}" if at else k)]
    return [] if one == other else [(at, one, other)]
