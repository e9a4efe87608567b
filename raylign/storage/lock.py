"""A lock on a folder for one process at a time, which the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from raylign.errors import DeadlineError, Interrupted

_POLL = 0.2  # seconds between tries


class StopRequest(Protocol):
    """Something that says whether the user asked to stop."""

    @property
    def requested(self) -> bool: ...


@contextmanager
def locked(path: Path, *, timeout: float, holds: str, stop: StopRequest | None = None) -> Iterator[None]:
    """Hold `.<name>.lock` beside `path` inside the block; the file stays, the lock is the kernel's.

    A killed process releases the lock at once, so a waiter never blocks on a dead process. The folder must be on a file
    system whose locks reach all its machines (NFS v4, Lustre with flock, one machine's own).

    Args:
        timeout: seconds to wait for the present holder.
        holds: what the holder does, for the message.
        stop: a request to stop, which ends the wait.
    Raises:
        DeadlineError: another process still holds it.
        Interrupted: stopped while it waited.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    with file.open("a") as handle:
        deadline = time.monotonic() + timeout
        while not _try(handle.fileno()):
            if stop and stop.requested:
                raise Interrupted(f"stopped while another process {holds} ({path})")
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"{file}: for {timeout:g} s another process {holds}; let it end, or end it, and continue with --resume"
                )
            time.sleep(_POLL)
        yield


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
