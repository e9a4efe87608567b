"""Reading and cutting the log of metrics: one JSON object a line, each with its step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from raylign.errors import DataError
from raylign.files import replacing


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the steps of a metrics.jsonl in order, one dict per step: lines of the same step are merged, the later wins.

    A last line torn by a crash is left out. Raises DataError for any other line that is not a JSON object with a step.
    """
    steps: dict[int, dict[str, Any]] = {}
    for line in _read(path):
        steps.setdefault(line["step"], {}).update(line)
    return [steps[step] for step in sorted(steps)]


def cut_metrics(path: Path, first_step: int) -> list[dict[str, Any]]:
    """Drop lines of `first_step` or later, and a torn last line; return the rest. Leaves the old file or the new one."""
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
