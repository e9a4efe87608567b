"""Measure the peak memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Forget the peak so far, so that an actor which is used again reports its new work alone.

    On Linux; elsewhere the peak of a process cannot be reset.
    """
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # resets VmHWM (man 5 proc)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Return the bytes at the peak: `host`, and `gpu` if this process used one.

    host is the resident set (VmHWM), so shared pages (libraries, objects of Ray's store) count in every process
    that touched them. gpu is what torch's allocator had in use, in this process alone: ranks that vLLM starts for a
    split engine are not seen.
    """
    found = {"host": _peak_resident()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu"] = int(torch.cuda.max_memory_allocated())
    return found


def _peak_resident() -> int:
    if _STATUS.exists():
        # Not getrusage: there a process begins with the peak of the one that started it.
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
