"""`run(config)`: a whole run, from its config to its summary, with the runs it needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from ray.util.placement_group import PlacementGroup

from raylign.actors.waiting import Stop
from raylign.config import RunConfig
from raylign.controllers.checks import check_stages
from raylign.controllers.context import RunOptions
from raylign.controllers.pool import ActorPool
from raylign.controllers.runner import Runner, RunResult
from raylign.controllers.stopping import stop_on_signal
from raylign.pipeline.stages import build_graph
from raylign.storage.lock import locked
from raylign.storage.outputs import output_base
from raylign.storage.run_folder import RunFolder
from raylign.tracking import Sink

_FOLDER_SECONDS = 60.0  # for a process of an earlier, killed driver to be gone from its run


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
        resume: continue the newest run directory of this name; start one if there is none.
        folder: the run directory, instead of a new one; a run in it is continued. One process at a time.
        quiet, pool, group, sinks, until: see `RunOptions`.
    Returns:
        The run directory (`<output_dir>/<name>`, numbered if that is taken) and its summary.
    Raises:
        UserError: the input must be fixed; nothing was started or left behind.
        Interrupted: stopped by a signal or at `until`, committed.
        FailureBudgetError, DeadlineError, NonFiniteError: the run ended; its last commit is intact.
    """
    stop, options = Stop(), RunOptions(pool, group, sinks, until, quiet)
    with ExitStack() as session, stop_on_signal(stop):
        stage = build_graph(config)
        check_stages(stage)
        runner = Runner(session, stop, options)
        if folder is None:
            base = _base(config)
            return runner.execute(stage, (RunFolder.newest(base) if resume else None) or RunFolder.fresh(base))
        with locked(folder, timeout=_FOLDER_SECONDS, holds="works on this run", stop=stop):
            return runner.execute(stage, RunFolder(folder))


def make_stages(configs: Iterable[RunConfig], *, quiet: bool = False) -> None:
    """Execute the runs that these need, each once, and prepare their tasks; not the runs themselves.

    Raises: see `run`.
    """
    stop = Stop()
    with ExitStack() as session, stop_on_signal(stop):
        for config in configs:
            stage = build_graph(config)
            check_stages(stage)
            Runner(session, stop, RunOptions(quiet=quiet)).make_needs(stage)


def has_ended(config: RunConfig) -> bool:
    """Return whether the newest run of this name has finished, so that `run(config, resume=True)` starts nothing."""
    folder = RunFolder.newest(_base(config))
    return folder is not None and folder.has_ended


def _base(config: RunConfig) -> Path:
    return output_base(config.output_dir) / config.name
