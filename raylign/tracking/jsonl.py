"""metrics.jsonl: one JSON object for each call of `log`, on disk before `log` returns."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylign.errors import DataError
from raylign.files import replacing
from raylign.tracking.sink import Sink


class JsonlSink(Sink):
    """Lines like `{"step": 3, "time": 12.5, "reward/mean": 0.4}`, where `time` is seconds since the run began.

    Opening cuts lines of `first_step` or later: they were logged after the last commit, and the resumed run logs
    those steps again. Time continues from the last line that is kept, so the hours a run was down do not count.
    Values that are not finite are written as null, because JSON has no NaN.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        kept = _cut(path, first_step)
        self._began = time.monotonic() - (kept[-1]["time"] if kept else 0.0)
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    @property
    def location(self) -> str:
        return str(self._path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        line: dict[str, Any] = {"step": step, "time": round(time.monotonic() - self._began, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        # One write and a flush for each line: a killed process leaves at most the last line torn.
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self, exit_code: int) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the steps of a metrics.jsonl in order, one dict a step; of values logged twice in a step, the last.

    Leaves out a last line that a crash has torn.

    Raises:
        DataError: any other line is not a JSON object with a step.
    """
    steps: dict[int, dict[str, Any]] = {}
    for line in _read(path):
        steps.setdefault(line["step"], {}).update(line)
    return [steps[step] for step in sorted(steps)]


def _cut(path: Path, first_step: int) -> list[dict[str, Any]]:
    """Drop lines of `first_step` or later and a torn last line, and return the rest. Atomic: old file or new file."""
    if not path.exists():
        return []
    kept = [line for line in _read(path) if line["step"] < first_step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    with replacing(path) as writing, writing.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return kept


def _read(path: Path) -> list[dict[str, Any]]:
    # Bytes, because a line may be torn in the middle of a character.
    raw = path.read_bytes()
    complete = raw[: raw.rfind(b"\n") + 1]  # a line without its newline is torn, even where it happens to parse
    lines = []
    for number, text in enumerate(complete.splitlines(), start=1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise DataError(f"{path}:{number}: not a JSON object with a step; delete this line or the file")
        lines.append(line)
    return lines
