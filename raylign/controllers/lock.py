"""One process at a time in a folder: a lock that the death of its holder frees."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raylign.actors.waiting import Stop
from raylign.errors import DeadlineError, Interrupted

_POLL = 0.2  # seconds between tries


@contextmanager
def locked(path: Path, *, timeout: float, holds: str, stop: Stop | None = None) -> Iterator[None]:
    """Hold `.<name>.lock` beside `path` inside; the file stays, the lock is the kernel's.

    A process that is killed lets go at once, so who waits does not wait for the dead. The folder must be on a file
    system whose locks reach all its machines (NFS v4, Lustre with flock, one machine's own).

    Args:
        timeout: seconds to wait for the present holder.
        holds: what the holder does, for the message.
        stop: a request on it ends the wait.
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
                    f"{file}: for {timeout:g} s another process {holds}; let it end, or end it, and go on with --resume"
                )
            time.sleep(_POLL)
        yield


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
