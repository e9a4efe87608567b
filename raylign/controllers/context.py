"""What a loop is given besides its actors: where to log, when to stop, how to commit."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray.util.placement_group import PlacementGroup

from raylign.actors.waiting import Stop, Waiter
from raylign.config import RunConfig
from raylign.controllers.pool import ActorPool
from raylign.errors import Interrupted
from raylign.storage.commits import Commit, Commits
from raylign.storage.run_folder import RunFolder
from raylign.tracking import Sink, Tracker, View


@dataclass(frozen=True)
class RunOptions:
    """Options of one execution, beside the config: none of them changes what the run computes."""

    pool: ActorPool | None = None  # keeps actors for the next run, inside one Ray session
    group: PlacementGroup | None = None  # placement group in which all actors live; every phase fits in it
    sinks: Sequence[Sink] = ()  # receive the metrics too
    until: int | None = None  # leave the run, committed, after this step, unless it is the last
    quiet: bool = False  # print nothing

    def for_stages(self) -> RunOptions:
        """Return the options of the runs that this run needs."""
        return replace(self, sinks=(), until=None)


@dataclass
class Run:
    """A run in progress. `config` has no `run:` or `task:` paths any more."""

    config: RunConfig
    folder: RunFolder  # absolute
    commits: Commits
    stop: Stop
    view: View
    tracker: Tracker
    options: RunOptions
    totals: dict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # summed time/*, tokens/* and reserved/*
    wall_before: float = 0.0  # seconds that earlier processes spent on the committed steps
    committed: Commit | None = None
    memory: dict[str, dict[str, int]] = field(default_factory=dict)  # peak bytes by role and place (host, gpu)

    def __post_init__(self) -> None:
        self.waiter = Waiter(self.stop)
        self._start = time.monotonic()

    def wall(self) -> float:
        """Return the seconds that this run has taken, over all processes that worked on it."""
        return self.wall_before + time.monotonic() - self._start

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Report the metrics of a finished step (counted from 1) to every sink and the view."""
        for name, value in metrics.items():
            if name.startswith(("time/", "tokens/")):
                self.totals[name] += value
        self.tracker.log(step, metrics)
        self.view.update(step, metrics)

    def commit_if_due(self, step: int, last: int, write: Callable[[Path], dict[str, Any]]) -> None:
        """Commit if it is due, after the last step, and if the run must stop here; then stop it."""
        leave = self.stop.requested or step == self.options.until
        if step % self.config.checkpoint.every_steps == 0 or step == last or leave:
            self.commit(step, write)
        if leave and step < last:
            raise Interrupted(f"stopped after step {step} of {last}; committed; continue with --resume")

    def commit(self, step: int, write: Callable[[Path], dict[str, Any]]) -> None:
        with self.timed("save"):
            path = self.commits.begin(step)
            state = write(path)
            state |= {"tracker": self.tracker.state(), "totals": dict(self.totals), "wall_seconds": self.wall()}
            self.committed = self.commits.finish(path, step, state)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the wall time of a section of the run that is not inside a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.totals[f"time/{name}"] += time.perf_counter() - start
