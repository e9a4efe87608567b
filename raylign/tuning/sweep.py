"""`raylign sweep`: the trials of a sweep file through Tune, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from raylign.actors.session import ray_session
from raylign.actors.waiting import Stop
from raylign.config import RunConfig
from raylign.config.draw import Sweep
from raylign.config.sweep import PBTConfig, SweepConfig
from raylign.controllers.outputs import output_base
from raylign.controllers.run import make_stages
from raylign.controllers.run_folders import fresh_folder, newest_folder
from raylign.controllers.stopping import stop_on_signal
from raylign.errors import Interrupted, RaylignError
from raylign.tuning import folders
from raylign.tuning.board import Board
from raylign.tuning.experiment import Experiment
from raylign.tuning.plots import draw
from raylign.tuning.population import Population, taken
from raylign.tuning.results import Row, best_of, results_table, rows_of, write_results
from raylign.tuning.schedulers import check_supported, make_scheduler
from raylign.tuning.size import check_sizes
from raylign.tuning.trainable import PartOfRun, Work, whole_run


@dataclass(frozen=True)
class SweepResult:
    """Where a sweep is and what came of it."""

    folder: Path
    rows: list[Row]
    best: Row | None
    files: list[Path]  # results, best config, plots


def sweep(loaded: Sweep, *, resume: bool = False, quiet: bool = False, work: Work = whole_run) -> SweepResult:
    """Run every trial of a sweep to its end (or to where the scheduler ends it), and write what came of it.

    Args:
        loaded: see `load_sweep`.
        resume: go on with the newest sweep of this name; start one if there is none.
        quiet: print nothing.
        work: what a trial does.
    Raises:
        UserError: something must be mended; no trial was started.
        PlacementError: nothing could be placed within limits.placement, though nothing ran.
        Interrupted: stopped by a signal; the results so far are written.
    """
    config = loaded.config
    check_supported(config)
    base = output_base(loaded.points[0].config.output_dir) / config.name
    folder = (newest_folder(base) if resume else None) or fresh_folder(base)
    points = {point.id: folders.anchored(point.config) for point in loaded.points}
    changed = {move.trial for moves in taken(folder).values() for move in moves}
    folders.prepare(folder, points, resume=True, changed=changed)
    folders.write(folder / "sweep.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    left = {name: one for name, one in points.items() if not folders.outcome(folder, name).ended}
    stop = Stop()
    if left:
        with stop_on_signal(stop), ray_session():
            check_sizes(left)
            make_stages(left.values(), quiet=quiet)
            with Board(loaded, len(points) - len(left), quiet=quiet) as board:
                _execute(config, folder, points, left, stop, board, work)
    result = gather(loaded, folder)
    if stop.requested:
        raise Interrupted(f"stopped; what is finished is in {folder}: go on with --resume")
    return result


def _execute(
    config: SweepConfig,
    folder: Path,
    points: Mapping[str, RunConfig],
    left: Mapping[str, RunConfig],
    stop: Stop,
    board: Board,
    work: Work,
) -> None:
    """What is left, in one experiment; a population in one for each generation."""
    start, seconds = time.monotonic(), config.budget.seconds
    if not isinstance(config.scheduler, PBTConfig):
        Experiment(
            folder,
            left,
            max_failures=config.max_failures,
            stop=stop,
            watch=board,
            scheduler=make_scheduler(config, folder, points),
            seconds=seconds,
            work=work,
        ).run()
        return

    def generation(trials: Mapping[str, RunConfig], until: int) -> None:
        rest = None if seconds is None else max(0.0, seconds - (time.monotonic() - start))
        Experiment(
            folder,
            trials,
            max_failures=config.max_failures,
            stop=stop,
            watch=board,
            seconds=rest,
            work=PartOfRun(until),
            ends=False,
        ).run()

    Population(folder, config, points).train(generation, board.note)


def gather(loaded: Sweep, folder: Path) -> SweepResult:
    """Results of the trials as they are on disk."""
    rows = rows_of(loaded, folder)
    files = write_results(loaded, rows, folder)
    return SweepResult(folder, rows, best_of(rows, loaded.config.mode), files + draw(loaded, rows, folder))


def show(loaded: Sweep, result: SweepResult, console: Console | None = None) -> None:
    """The table, and where everything is.

    Raises:
        RaylignError: trials failed, or none finished.
    """
    console = console or Console()
    console.print(results_table(loaded, result.rows))
    for file in result.files:
        console.print(escape(str(file)), soft_wrap=True, highlight=False)
    failed = [row for row in result.rows if row.status == "failed"]
    if failed:
        first = failed[0]
        raise RaylignError(
            f"{len(failed)} of {len(result.rows)} trials failed, first trial {first.id}: {first.error}; find the cause in "
            f"{first.folder}, then go on with --resume"
        )
    if result.best is None:
        raise RaylignError(f"no trial came to its end; go on with --resume, or raise budget.seconds ({result.folder})")
