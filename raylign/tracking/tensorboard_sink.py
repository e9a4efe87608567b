"""Metrics in TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping

from tensorboardX import SummaryWriter

from raylign.storage.run_folder import RunFolder
from raylign.tracking.sink import Sink, TrackedRun

FLUSH_SECONDS = 10


class TensorboardSink(Sink):
    """Scalars in `tensorboard/` of the run directory; after a resume TensorBoard hides what earlier files repeat."""

    def __init__(self, run: TrackedRun, enabled: bool) -> None:
        # The writer names a file by the second it opens it. A quick restart would overwrite it without the step.
        suffix = f".{run.first_step:09d}"
        self._directory = str(RunFolder(run.folder).tensorboard)
        self._writer = SummaryWriter(
            self._directory, purge_step=run.first_step, flush_secs=FLUSH_SECONDS, filename_suffix=suffix
        )

    @property
    def location(self) -> str:
        return self._directory

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self, exit_code: int) -> None:
        self._writer.close()
