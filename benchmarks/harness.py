"""Run the sides of a benchmark as subprocesses, in turns, on the same cores, and collect their measurements."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import work

HERE = Path(__file__).resolve().parent
TIMEOUT = 1800  # seconds for one run of one side


@dataclass(frozen=True)
class Measurement:
    """Times and losses of one run of one side. Seconds are wall time."""

    side: str
    dtype: str
    seconds_whole: float  # of the process, from its start to its exit
    seconds_inner: float  # of the work itself, as the side reports it
    seconds_import: float | None  # None where the side does not report it
    items: int
    losses: list[dict[str, float]]
    breakdown: dict[str, float]


@dataclass(frozen=True)
class Side:
    """One contestant of a benchmark: its command, and the function that reads its result.

    command: called with (work folder, scratch folder, dtype); returns the command line.
    read: called with the scratch folder after the process has ended; returns the JSON that peers/record.py describes.
    """

    name: str
    command: Callable[[Path, Path, str], list[str]]
    read: Callable[[Path], dict[str, Any]]


def peer(name: str, python: Path, script: str, *extra: str) -> Side:
    """Return a side whose script writes the JSON of peers/record.py itself."""

    def command(shared: Path, scratch: Path, dtype: str) -> list[str]:
        path = str(HERE / "peers" / script)
        given = ["--work", str(shared), "--dtype", dtype, "--json", str(scratch / "result.json")]
        return [str(python), path, *given, *extra]

    return Side(name, command, lambda scratch: json.loads((scratch / "result.json").read_text()))


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=3, help="number of runs of each side, in turns")
    parser.add_argument("--dtype", default="fp32,bf16", help="fp32, bf16, or both separated by a comma")
    parser.add_argument("--cores", type=int, default=2, help="number of cores and threads for every side")
    parser.add_argument("--sides", help="comma-separated names; default: all")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    parser.add_argument("--work", type=Path, help="folder for the shared work; default: a temporary folder")
    parser.add_argument("--torch-index", help="package index for torch when a peer's environment is created")
    return parser


def chosen(sides: list[Side], names: str | None) -> list[Side]:
    if names is None:
        return sides
    known = {side.name: side for side in sides}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        sys.exit(f"--sides: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def measure(sides: list[Side], given: argparse.Namespace, settings: dict[str, Any]) -> list[Measurement]:
    """Run every side once per round, A B C A B C, so that a slow spell of the machine affects all of them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a side must not outlive a killed driver
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])  # children inherit it
    measurements = []
    with tempfile.TemporaryDirectory(prefix="raylign-bench-") as folder:
        shared = (given.work or Path(folder) / "work").resolve()
        work.make(shared, settings)
        for dtype in given.dtype.split(","):
            for index in range(given.rounds):
                for side in sides:
                    last = _run(side, shared, dtype, given.cores)
                    measurements.append(last)
                    print(
                        f"{dtype} round {index + 1}/{given.rounds} {side.name}: "
                        f"whole {last.seconds_whole:.1f} s, inner {last.seconds_inner:.1f} s",
                        file=sys.stderr,
                    )
    return measurements


def _run(side: Side, shared: Path, dtype: str, cores: int) -> Measurement:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(cores),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory(prefix="raylign-bench-") as folder:
        scratch = Path(folder)
        command = side.command(shared, scratch, dtype)
        with (scratch / "output.log").open("wb") as log:
            begun = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=scratch, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                status = process.wait(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _stop(process)
            whole = time.perf_counter() - begun
        if status != 0:
            ending = (scratch / "output.log").read_text(errors="replace")[-4000:]
            how = f"ran longer than {TIMEOUT} s" if status is None else f"ended with status {status}"
            raise SystemExit(f"{ending}\n{side.name} {dtype} {how}: {' '.join(command)}")
        result = side.read(scratch)
    return Measurement(side.name, dtype, whole, **result)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a side that is still running (Ctrl-C, timeout) and its children: the next side must find idle cores."""
    if process.poll() is None:
        process.terminate()  # raylign ends its Ray processes on SIGTERM
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
