"""`Tracker`, which passes metrics on to every sink of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from raylign.config import TrackingConfig
from raylign.storage.run_folder import RunFolder
from raylign.tracking.jsonl import JsonlSink
from raylign.tracking.sink import Sink, TrackedRun, open_sinks

RESERVED = frozenset({"step", "time"})


class Tracker:
    """Metrics of one run: always in `metrics.jsonl`, and in the sinks that the config asks for.

    Args:
        run_dir: must exist.
        state: of `state()` at the last commit, None for a new run.
        first_step: the first step that this process will log. After a commit at step 50 it is 51, and what earlier
            processes wrote for step 51 or later is dropped, so that no step appears twice.
        sinks: get the metrics too, after the others.
    Raises:
        UserError: a service refuses the run, e.g. W&B without credentials.
        DataError: an existing metrics.jsonl is damaged.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        name: str,
        run_config: Mapping[str, Any],
        state: Mapping[str, Any] | None = None,
        *,
        first_step: int = 0,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self._last_step = first_step - 1  # an evaluation may still belong to the committed step
        run = TrackedRun(run_dir, name, run_config, state or {}, first_step)
        self._services = open_sinks(config, run)  # first: what is wrong here, the user can fix
        self._sinks: list[Sink] = [JsonlSink(RunFolder(run_dir).metrics_file, first_step), *self._services, *sinks]

    @property
    def location(self) -> str | None:
        """Page or folder of the first service that the config asks for, None without one."""
        return next((sink.location for sink in self._services if sink.location), None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write scalars of `step`; a step may be logged in several calls, but not after a later one.

        Raises:
            ValueError: a step below the last one, a reserved name, or a value that is not a number.
        """
        if step < self._last_step:
            raise ValueError(f"step {step} was logged after step {self._last_step}; steps only go up")
        if clash := RESERVED & metrics.keys():
            raise ValueError(f"metric name {sorted(clash)[0]!r} is reserved")
        scalars = {name: _scalar(name, value) for name, value in metrics.items()}
        self._last_step = step
        for sink in self._sinks:
            sink.log(step, scalars)

    def state(self) -> dict[str, Any]:
        """Return what the next process needs to continue the same tracked run: JSON, for the commit's manifest.

        Sinks that were handed to the run are left out: they live in this process, and their maker can make them again.
        """
        return {key: value for sink in self._services for key, value in sink.state().items()}

    def close(self, exit_code: int = 0) -> None:
        """Flush and close every sink; an `exit_code` other than 0 marks the run as failed."""
        for sink in self._sinks:
            sink.close(exit_code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(0 if kind is None else 1)


def _scalar(name: str, value: Any) -> float:
    if isinstance(value, int):  # counts stay whole numbers in JSON; True is 1
        return int(value)
    if isinstance(value, str):  # float("1") would let a mistake pass
        raise ValueError(f"metric {name!r} is the text {value!r}; metrics are numbers")
    return float(value)
