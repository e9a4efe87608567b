"""Run directories: their names, and when an old one is still the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raylign.config import RunConfig

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
    return _differences(before, after)


def _differences(then: Any, now: Any, at: str = "") -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*then, *(k for k in now if k not in then)]
        return [d for k in keys for d in _differences(then.get(k), now.get(k), f"{at}.{k}" if at else k)]
    return [] if then == now else [f"{at} ({then!r} -> {now!r})"]


def write_json(path: Path, value: Any) -> None:
    writing = path.with_suffix(".writing")
    writing.write_text(json.dumps(value, indent=2))
    writing.replace(path)
