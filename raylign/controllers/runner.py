"""`Runner`: a run and the stages it needs, on one Ray session; an attempt that loses an actor is followed by another."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylign.actors.session import ray_session
from raylign.actors.waiting import ActorLost, Stop
from raylign.config import RunConfig
from raylign.controllers.checks import check_splits
from raylign.controllers.collect import num_parts
from raylign.controllers.context import Run, RunOptions
from raylign.controllers.summary import summarise
from raylign.controllers.workflows import execute
from raylign.errors import FailureBudgetError, Interrupted
from raylign.pipeline.inputs import load_inputs
from raylign.pipeline.stages import Stage, resolve
from raylign.storage.lock import locked
from raylign.storage.run_folder import RunFolder
from raylign.tracking import Tracker, make_view
from raylign.types import Dataset

_STAGE_SECONDS = 86_400.0  # for another process to make a stage; its death ends the wait


@dataclass(frozen=True)
class RunResult:
    """The directory of a finished run and its summary."""

    folder: Path
    summary: dict[str, Any]

    @property
    def output(self) -> Path:
        """The run's result: a Hugging Face folder, or the dataset of a collect run."""
        return self.folder / self.summary["output"]


@dataclass(frozen=True)
class _Job:
    """A run that is ready to start: its config has real paths and its rows are read."""

    config: RunConfig
    folder: RunFolder
    rows: Dataset
    held_out: Dataset | None
    options: RunOptions


class Runner:
    """Executes runs on one Ray session, which starts with the first run that has work to do."""

    def __init__(self, session: ExitStack, stop: Stop, options: RunOptions) -> None:
        self.session, self.stop, self.options = session, stop, options
        self.has_ray = False

    def execute(self, stage: Stage, folder: RunFolder) -> RunResult:
        """Execute a run in this folder, from its last commit; a finished run is returned as it is."""
        if folder.has_ended:
            folder.check_unchanged(stage.config, stage.content)
            return RunResult(folder.path, folder.summary)
        return self._run(stage, folder, self.options)

    def make_needs(self, stage: Stage) -> RunConfig:
        """Make all that a run needs, and return its config with real paths."""
        return resolve(stage, self._make_stage)

    def _make_stage(self, stage: Stage) -> Path:
        """Execute a run that another run needs: once, by one process, continued if it was interrupted."""
        folder = RunFolder(stage.folder)
        if not folder.has_ended:
            with locked(stage.folder, timeout=_STAGE_SECONDS, holds="makes this stage", stop=self.stop):
                if not folder.has_ended:
                    self._run(stage, folder, self.options.for_stages())
        return stage.folder

    def _run(self, stage: Stage, folder: RunFolder, options: RunOptions) -> RunResult:
        if folder.exists():
            folder.check_unchanged(stage.config, stage.content)
        config = self.make_needs(stage)
        check_splits(config)
        rows, held_out = load_inputs(config)
        folder.write_configs(stage.config, config, stage.content)
        self._ensure_ray()
        job, failures = _Job(config, folder, rows, held_out, options), 0
        while True:
            try:
                return self._attempt(job)
            except ActorLost as lost:
                failures += 1
                if failures > config.limits.max_failures:
                    raise FailureBudgetError(
                        f"{lost}: more than limits.max_failures {config.limits.max_failures} times; the last commit in "
                        f"{folder} is intact: find the cause, then continue with --resume"
                    ) from lost

    def _attempt(self, job: _Job) -> RunResult:
        """Run from the last commit (or the start) to the end."""
        config, folder, options = job.config, job.folder, job.options
        commits = folder.commits(config.checkpoint.keep)
        commit = commits.latest()
        state = commit.state if commit else {}
        done = commit.step if commit else num_parts(folder)
        num_steps = config.algorithm.num_steps(len(job.rows))
        view = make_view(
            config.name, num_steps, headline=config.algorithm.headline, first_step=done, quiet=options.quiet
        )
        tracker = Tracker(
            folder.path,
            config.tracking,
            config.name,
            config.model_dump(mode="json"),
            state.get("tracker"),
            first_step=done + 1,
            sinks=options.sinks,
        )
        with tracker:
            with view:
                wall_before = state.get("wall_seconds", 0.0)
                run = Run(config, folder, commits, self.stop, view, tracker, options, wall_before=wall_before)
                run.totals.update(state.get("totals", {}))
                scores = execute(run, job.rows, job.held_out, commit)
            summary = summarise(run, scores, num_steps)
            folder.write_summary(summary)
        return RunResult(folder.path, summary)

    def _ensure_ray(self) -> None:
        if self.stop.requested:
            raise Interrupted("stopped before anything was started")
        if not self.has_ray:
            self.session.enter_context(ray_session())
            self.has_ray = True
