"""`Sink`, the protocol of every place that metrics are written to, and `SINKS`, those that a config can ask for.

To add a service: one file with its sink, one line in `SINKS`, and one field of `TrackingConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

from raylign.config import TrackingConfig

# Field of TrackingConfig -> class, imported only by a run that sets the field. Called with (run, value of the field).
SINKS = {
    "wandb": "raylign.tracking.wandb_sink:WandbSink",
    "tensorboard": "raylign.tracking.tensorboard_sink:TensorboardSink",
}


@dataclass(frozen=True)
class TrackedRun:
    """The run whose metrics are tracked, as far as a sink needs to know it."""

    folder: Path  # the run directory, which exists
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)  # the resolved run config, to be shown beside the metrics
    state: Mapping[str, Any] = field(default_factory=dict)  # `Tracker.state()` at the last commit, empty for a new run
    first_step: int = 0  # first step that this process will log; later steps of earlier processes are void


class Sink(Protocol):
    """A place that metrics are written to. A subclass needs `log` and `close`; the rest has defaults."""

    @property
    def location(self) -> str | None:
        """Page, file or folder where a person finds the metrics, None without one."""
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step. A step may come in several calls."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what the next process needs to continue here, as JSON; all sinks share one dict, so name keys after it."""
        return {}

    def close(self, exit_code: int) -> None:
        """Write what is left, and mark the run as failed if `exit_code` is not 0."""
        ...


def open_sinks(config: TrackingConfig, run: TrackedRun) -> list[Sink]:
    """Return the sinks that the config asks for, opened, in the order of `SINKS`."""
    sections = {name: getattr(config, name) for name in SINKS}
    return [resolve_name(SINKS[name])(run, section) for name, section in sections.items() if section]
