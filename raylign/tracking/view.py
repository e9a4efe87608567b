"""Progress of a run for the person at the terminal: a live panel, plain lines, or nothing. `make_view` chooses."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol, Self

from rich.console import Console

from raylign.config.traits import Headline
from raylign.tracking.console import progress_console
from raylign.tracking.progress import Progress, format_clock, format_value

LINE_SECONDS = 5.0
HEARTBEAT_SECONDS = 30.0


class View(Protocol):
    """A context manager around a run. Every method returns at once, and none fails without a terminal."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` steps are done, and their metrics."""
        ...

    def status(self, text: str) -> None:
        """Show what the run does from now on: "placing actors", "generating", "evaluating"."""
        ...

    def note(self, text: str) -> None:
        """Print one line that stays on the screen."""
        ...


class NullView:
    """A view that shows nothing, for Tune trials and `--quiet`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    def update(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def status(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...


class PlainView:
    """Lines for logs and pipes, without control characters, at most one every `line_seconds`:

        step 10/100  reward 0.520  kl 1.300  tokens/s 5,123  eta 1:20

    Where nothing else was printed for `heartbeat_seconds`, prints the status and how long it has lasted.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        *,
        console: Console | None = None,
        first_step: int = 0,
        headline: Headline,
        line_seconds: float = LINE_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._progress = Progress(title, total_steps, first_step, headline=headline)
        self._console = console or progress_console()
        self._line_seconds = line_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._last_line = -line_seconds  # when a progress line was printed, on the clock of elapsed seconds
        self._shown_step = first_step
        self._stopped = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="raylign-view", daemon=True)

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopped.set()
        self._heart.join(timeout=1.0)
        progress = self._progress
        if progress.step != self._shown_step:
            self._line(self._step_line())
        how = "finished" if kind is None else "stopped"
        at = f"step {progress.step}/{progress.total_steps}"
        self._line(f"{progress.title}: {how} at {at} after {format_clock(progress.elapsed)}")

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self._progress.update(step, metrics)
        if self._due(self._line_seconds):
            self._line(self._step_line())
            self._shown_step = step

    def status(self, text: str) -> None:
        self._progress.set_status(text)
        # Before the first step every status is news; later it changes many times a step.
        if not self._progress.metrics:
            self._line(f"{self._progress.title}: {text}")

    def note(self, text: str) -> None:
        self._line(text)

    def _due(self, seconds: float) -> bool:
        return self._progress.elapsed - self._last_line >= seconds

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, style=None)
        self._last_line = self._progress.elapsed

    def _step_line(self) -> str:
        progress = self._progress
        parts = [f"step {progress.step}/{progress.total_steps}"]
        named = [*progress.headline[:1], ("kl/k1", "kl"), *progress.headline[1:2]]
        named.append(("throughput/tokens_per_second", "tokens/s"))
        parts += [
            f"{label} {format_value(progress.metrics[name])}" for name, label in named if name in progress.metrics
        ]
        if progress.eta is not None:
            parts.append(f"eta {format_clock(progress.eta)}")
        return "  ".join(parts)

    def _beat(self) -> None:
        while not self._stopped.wait(self._heartbeat_seconds / 4):
            if self._due(self._heartbeat_seconds):
                self._line(
                    f"{self._progress.title}: {self._progress.status}, {format_clock(self._progress.status_elapsed)}"
                )


def make_view(
    title: str,
    total_steps: int,
    *,
    console: Console | None = None,
    first_step: int = 0,
    headline: Headline,
    quiet: bool = False,
) -> View:
    """Return a LiveView on a terminal, a PlainView elsewhere, a NullView if `quiet`; `first_step` steps are done."""
    if quiet:
        return NullView()
    from raylign.tracking.live import LiveView

    console = console or progress_console()
    kind = LiveView if console.is_terminal and not console.is_dumb_terminal else PlainView
    return kind(title, total_steps, console=console, first_step=first_step, headline=headline)
