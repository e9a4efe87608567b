"""`Tracker`: one call of `log` reaches every sink the run asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from raylign.config import TrackingConfig
from raylign.tracking.jsonl import JsonlSink

RESERVED = frozenset({"step", "time"})


class Sink(Protocol):
    """Where metrics go."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self, exit_code: int) -> None: ...


class Tracker:
    """Metrics of one run: `metrics.jsonl` always, W&B and TensorBoard where the config asks for them.

    `run_dir` must exist. `state` is what `state()` gave at the last commit, None for a new run. `first_step` is the
    first step that this process will log: after a commit at step 50 it is 51, and what earlier processes wrote for
    step 51 or later is dropped, so that no step appears twice. `sinks` are told too, after the others.

    Raises UserError if W&B has no credentials, DataError if an existing metrics.jsonl is damaged.
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
        self._wandb = None
        if config.wandb is not None:  # first, because it is the one the user may have to mend
            from raylign.tracking.wandb_sink import WandbSink

            run_id = state["wandb_run_id"] if state else None
            self._wandb = WandbSink(run_dir, config.wandb, name, run_config, run_id)
        self._sinks: list[Sink] = [JsonlSink(run_dir / "metrics.jsonl", first_step)]
        if config.tensorboard:
            from raylign.tracking.tensorboard_sink import TensorboardSink

            self._sinks.append(TensorboardSink(run_dir / "tensorboard", first_step))
        if self._wandb is not None:
            self._sinks.append(self._wandb)
        self._sinks += sinks

    @property
    def location(self) -> str | None:
        """Page or folder of the W&B run, None without one."""
        return self._wandb.location if self._wandb else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes scalars of `step`; a step may be logged in several calls, but never an earlier one again.

        Raises ValueError for a step below the last one, for a reserved name and for what is not a number.
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
        """What the next process needs to continue the same tracked run; JSON, goes into the commit's manifest."""
        return {"wandb_run_id": self._wandb.run_id if self._wandb else None}

    def close(self, exit_code: int = 0) -> None:
        """Flushes and closes every sink; `exit_code` other than 0 marks the run as failed."""
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
