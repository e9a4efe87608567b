"""Ctrl-C and SIGTERM: the first asks the run to save and end, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from raylign.actors.waiting import Stop
from raylign.tracking import progress_console


@contextmanager
def stop_on_signal(stop: Stop) -> Iterator[None]:
    """Turn signals into a stop request while inside. Outside the main thread (a Tune trial) signals are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.request()
        progress_console().print("stopping: saving after this step (Ctrl-C again to drop it)", style="yellow")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
