"""TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

FLUSH_SECONDS = 10


class TensorboardSink:
    """Scalars under `directory`; on resume the steps from `first_step` on of earlier files are hidden."""

    def __init__(self, directory: Path, first_step: int) -> None:
        # The writer names a file by the second it was opened in; the step keeps a quick restart off its predecessor.
        suffix = f".{first_step:09d}"
        self._writer = SummaryWriter(
            str(directory), purge_step=first_step, flush_secs=FLUSH_SECONDS, filename_suffix=suffix
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self, exit_code: int) -> None:
        self._writer.close()
