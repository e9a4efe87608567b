"""Ranks of a world, each in a fresh process, as learners are in production."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any


def run_ranks(main: Callable[..., None], size: int, *args: Any, deadline: float) -> None:
    """`main(rank, *args)` on every rank; the first that fails, or `deadline` seconds, ends them all.

    What a failed rank had to say is on its stderr, which pytest shows.
    """
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=main, args=(rank, *args), daemon=True) for rank in range(size)]
    end = time.monotonic() + deadline
    try:
        for process in ranks:
            process.start()
        running = dict(zip((process.sentinel for process in ranks), ranks, strict=True))
        while running:
            ended = wait(list(running), timeout=max(0.0, end - time.monotonic()))
            assert ended, f"{len(running)} of {size} ranks still run after {deadline:g} s"
            for sentinel in ended:
                process = running.pop(sentinel)  # type: ignore[arg-type]
                process.join(10)  # its pipe closes a moment before its exit code is there
                assert process.exitcode == 0, f"a rank ended with {process.exitcode}"
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
            process.join(10)
