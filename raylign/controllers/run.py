"""`run(config)`: a whole run, from its config to summary.json, with the stages it needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.util.placement_group import PlacementGroup

from raylign.actors.session import ray_session
from raylign.actors.waiting import ActorLost, Stop
from raylign.config import RunConfig
from raylign.controllers.checks import check_splits, check_stages
from raylign.controllers.collect import num_parts
from raylign.controllers.context import Run
from raylign.controllers.pool import ActorPool
from raylign.controllers.stopping import stop_on_signal
from raylign.controllers.usage import reserved_seconds, summarised
from raylign.controllers.workflows import execute
from raylign.errors import FailureBudgetError, Interrupted
from raylign.pipeline.inputs import load_inputs
from raylign.pipeline.stages import Stage, build_graph, output_name, resolve
from raylign.storage.commits import Commits
from raylign.storage.lock import locked
from raylign.storage.outputs import output_base
from raylign.storage.run_folder import RunFolder
from raylign.tracking import Sink, Tracker, make_view
from raylign.types import Dataset
from raylign.version import __version__

_STAGE_SECONDS = 86_400.0  # for another process to make a stage; its death ends the wait
_FOLDER_SECONDS = 60.0  # for a process of an earlier, killed driver to be gone from its run


@dataclass(frozen=True)
class RunResult:
    """Where a run is and what came of it."""

    folder: Path
    summary: dict[str, Any]

    @property
    def output(self) -> Path:
        """What the run made: a Hugging Face folder, or the dataset of a collect run."""
        return self.folder / self.summary["output"]


def run(
    config: RunConfig,
    *,
    resume: bool = False,
    quiet: bool = False,
    pool: ActorPool | None = None,
    folder: Path | None = None,
    group: PlacementGroup | None = None,
    sinks: Sequence[Sink] = (),
    until: int | None = None,
) -> RunResult:
    """Execute a run and the runs it needs.

    Args:
        config: see `load_config`.
        resume: go on with the newest run directory of this name; start one if there is none.
        quiet: print nothing.
        pool: keeps actors for the next run (inside one Ray session).
        folder: the run directory, instead of a new one; what is there is gone on with. One process at a time.
        group: a placement group with the bundles of `layout.bundles_of`, in which all actors then live.
        sinks: are told the metrics of the run too (not those of the runs it needs).
        until: leave the run after this step as a signal would, unless it is the last.
    Returns:
        The run directory (`<output_dir>/<name>`, numbered if that is taken) and its summary.
    Raises:
        UserError: the input must be mended; nothing was started or left behind.
        Interrupted: stopped by a signal or at `until`, committed.
        FailureBudgetError, DeadlineError, NonFiniteError: the run ended; its last commit is whole.
    """
    stop = Stop()
    with ExitStack() as session, stop_on_signal(stop):
        stage = build_graph(config)
        check_stages(stage)
        runner = _Runner(session, stop, quiet, pool, group, sinks, until)
        if folder is None:
            return runner.execute(stage, resume)
        with locked(folder, timeout=_FOLDER_SECONDS, holds="works on this run", stop=stop):
            return runner.execute_in(RunFolder(folder), stage)


def make_stages(configs: Iterable[RunConfig], *, quiet: bool = False) -> None:
    """Execute the runs that these need, each once, and prepare their tasks; not the runs themselves.

    Raises: see `run`.
    """
    stop = Stop()
    with ExitStack() as session, stop_on_signal(stop):
        for config in configs:
            stage = build_graph(config)
            check_stages(stage)
            _Runner(session, stop, quiet).needs(stage)


class _Runner:
    """Executes a graph of stages on one Ray session, which starts with the first stage that needs it."""

    def __init__(
        self,
        session: ExitStack,
        stop: Stop,
        quiet: bool,
        pool: ActorPool | None = None,
        group: PlacementGroup | None = None,
        sinks: Sequence[Sink] = (),
        until: int | None = None,
    ) -> None:
        self.session, self.stop, self.quiet, self.pool = session, stop, quiet, pool
        self.group, self.sinks, self.until = group, sinks, until
        self.has_ray = False

    def execute(self, stage: Stage, resume: bool) -> RunResult:
        """The run that was asked for."""
        base = output_base(stage.config.output_dir) / stage.config.name
        return self.execute_in((RunFolder.newest(base) if resume else None) or RunFolder.fresh(base), stage)

    def execute_in(self, folder: RunFolder, stage: Stage) -> RunResult:
        """The same in this folder, from where it stands."""
        if folder.has_ended:
            folder.check_unchanged(stage.config, stage.content)
            return RunResult(folder.path, folder.summary)
        return self._run(stage, folder, self.sinks, self.until)

    def needs(self, stage: Stage) -> RunConfig:
        """The stage's config with real paths, which are there now."""
        return resolve(stage, self._stage)

    def _stage(self, stage: Stage) -> Path:
        """A run that another one needs: done once, by one process, gone on with if it was interrupted."""
        folder = RunFolder(stage.folder)
        if not folder.has_ended:
            with locked(stage.folder, timeout=_STAGE_SECONDS, holds="makes this stage", stop=self.stop):
                if not folder.has_ended:
                    self._run(stage, folder)
        return stage.folder

    def _run(self, stage: Stage, folder: RunFolder, sinks: Sequence[Sink] = (), until: int | None = None) -> RunResult:
        resumed = folder.exists()
        if resumed:
            folder.check_unchanged(stage.config, stage.content)
        config = self.needs(stage)
        check_splits(config)
        rows, held_out = load_inputs(config)
        folder.write_configs(stage.config, config, stage.content)
        commits = folder.commits(config.checkpoint.keep)
        self._ensure_ray()
        failures = 0
        while True:
            try:
                return self._attempt(config, folder, commits, rows, held_out, sinks, until)
            except ActorLost as lost:
                failures += 1
                if failures > config.limits.max_failures:
                    raise FailureBudgetError(
                        f"{lost}: more than limits.max_failures {config.limits.max_failures} times; "
                        f"the last commit in {commits.folder} is whole: find the cause, then go on with --resume"
                    ) from lost

    def _attempt(
        self,
        config: RunConfig,
        folder: RunFolder,
        commits: Commits,
        rows: Dataset,
        held_out: Dataset | None,
        sinks: Sequence[Sink],
        until: int | None,
    ) -> RunResult:
        """From the last commit (or the start) to the end."""
        commit = commits.latest()
        done = commit.step if commit else num_parts(folder)
        state = commit.state if commit else {}
        num_steps = config.algorithm.num_steps(len(rows))
        view = make_view(config.name, num_steps, first_step=done, headline=config.algorithm.headline, quiet=self.quiet)
        tree = config.model_dump(mode="json")
        with Tracker(
            folder.path, config.tracking, config.name, tree, state.get("tracker"), first_step=done + 1, sinks=sinks
        ) as tracker:
            with view:
                current = Run(
                    config,
                    folder,
                    commits,
                    self.stop,
                    view,
                    tracker,
                    pool=self.pool,
                    group=self.group,
                    until=until,
                    wall_before=state.get("wall_seconds", 0.0),
                )
                current.totals.update(state.get("totals", {}))
                scores = execute(current, rows, held_out, commit)
            summary = _summary(config, current, scores, num_steps)
            folder.write_summary(summary)
        return RunResult(folder.path, summary)

    def _ensure_ray(self) -> None:
        if self.stop.requested:
            raise Interrupted("stopped before anything was started")
        if not self.has_ray:
            self.session.enter_context(ray_session())
            self.has_ray = True


def _summary(config: RunConfig, run: Run, scores: dict[str, Any], steps: int) -> dict[str, Any]:
    before, after = scores.get("before"), scores.get("after")
    totals = run.totals
    return {
        "name": config.name,
        "algorithm": config.algorithm.name,
        "seed": config.seed,
        "steps": steps,
        "score_before": before and before["score"],
        "score_after": after and after["score"],
        "kl": after and after["kl"],
        "evaluation": scores,
        "wall_seconds": run.wall(),
        "stage_seconds": {name.removeprefix("time/"): v for name, v in sorted(totals.items()) if _is_stage(name)},
        "reserved_seconds": reserved_seconds(totals),
        "tokens": {name.removeprefix("tokens/"): int(v) for name, v in totals.items() if name.startswith("tokens/")},
        "memory": summarised(run.memory),
        "output": output_name(config),
        "raylign": __version__,
    }


def _is_stage(name: str) -> bool:
    return name.startswith("time/") and name != "time/idle_fraction"


def has_ended(config: RunConfig) -> bool:
    """Whether the newest run of this name came to its end, so that `run(config, resume=True)` starts nothing."""
    folder = RunFolder.newest(output_base(config.output_dir) / config.name)
    return folder is not None and folder.has_ended
