"""metrics.jsonl: one JSON object for each call of `log`, on disk before `log` returns."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylign.storage.metrics_log import cut_metrics
from raylign.tracking.sink import Sink


class JsonlSink(Sink):
    """Lines like `{"step": 3, "time": 12.5, "reward/mean": 0.4}`, where `time` is seconds since the run began.

    Opening cuts lines of `first_step` or later: they were logged after the last commit, and the resumed run logs
    those steps again. Time continues from the last line that is kept, so the hours a run was down do not count.
    Values that are not finite are written as null, because JSON has no NaN.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        kept = cut_metrics(path, first_step)
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
