"""`Finding`, the result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 2**30

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """Result of one check, with advice in `fix`, which is empty if the status is ok."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def gib(size: float) -> str:
    """Format a number of bytes, e.g. `3.5 GiB`."""
    return f"{size / GIB:.1f} GiB"
