"""What the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 2**30

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `fix` is what to do about it, empty where the status is ok."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
