"""Run directories: their names, and when an old one is still the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raylign.config import RunConfig
from raylign.files import write_atomic

SUMMARY = "summary.json"  # of a run that came to its end
CONTENT = "content.json"
_MAY_CHANGE = {"output_dir", "tracking", "limits", "checkpoint", "placement"}  # on --resume


def newest_folder(base: Path) -> Path | None:
    """The highest numbered of base, base-2, base-3, ..."""
    found = [base] if base.exists() else []
    found += [p for p in base.parent.glob(f"{base.name}-*") if p.name.removeprefix(f"{base.name}-").isdigit()]
    return max(found, key=lambda p: int(p.name.removeprefix(base.name).lstrip("-") or 1), default=None)


def fresh_folder(base: Path) -> Path:
    """`base`, or the first free number behind it: a new run never touches an old one."""
    newest = newest_folder(base)
    if newest is None:
        return base
    return base.with_name(f"{base.name}-{int(newest.name.removeprefix(base.name).lstrip('-') or 1) + 1}")


def differences(then: RunConfig, now: RunConfig) -> list[str]:
    """Dotted places, with both values, in which a run would not be the same run any more."""
    before, after = (one.model_dump(mode="json", exclude=_MAY_CHANGE) for one in (then, now))
    return [f"{place} ({old!r} -> {new!r})" for place, old, new in differing(before, after)]


def differing(one: Any, other: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted place, here, there) of every value that differs, as deep as both have keys."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [d for k in keys for d in differing(one.get(k), other.get(k), f"{at}.{k}" if at else k)]
    return [] if one == other else [(at, one, other)]


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2))
