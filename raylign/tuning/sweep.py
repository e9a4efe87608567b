"""`raylign sweep`: the trials of a sweep file through Tune, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape

from raylign.actors.session import ray_session
from raylign.actors.waiting import Stop
from raylign.config import RunConfig
from raylign.config.draw import Sweep
from raylign.config.sweep import PBTConfig
from raylign.controllers.outputs import output_base
from raylign.controllers.run import make_stages
from raylign.controllers.run_folders import fresh_folder, newest_folder
from raylign.controllers.stopping import stop_on_signal
from raylign.errors import Interrupted, RaylignError
from raylign.files import write_atomic
from raylign.tuning import folders
from raylign.tuning.board import Board
from raylign.tuning.experiment import Experiment
from raylign.tuning.plots import draw
from raylign.tuning.population import Population, taken
from raylign.tuning.results import Row, best_of, results_table, rows_of, write_results
from raylign.tuning.schedulers import make_scheduler
from raylign.tuning.searching import Asked, asked_before
from raylign.tuning.size import check_sizes
from raylign.tuning.trainable import PartOfRun, Work, whole_run

WIDTH = 120  # of the table where it is not a terminal's


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
    base = output_base(loaded.points[0].config.output_dir) / config.name
    folder = (newest_folder(base) if resume else None) or fresh_folder(base)
    examples = _configs(loaded)
    searcher = None
    if config.searcher == "optuna":
        loaded = replace(loaded, points=asked_before(loaded.drawing, folder))
        searcher = Asked(loaded, folder, list(examples.values()))
    trials = _configs(loaded)
    earlier = [move for _, moves in sorted(taken(folder).items()) for move in moves]
    folders.prepare(folder, trials, resume=True, changed={move.trial for move in earlier})
    write_atomic(folder / "sweep.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    left = {name: one for name, one in trials.items() if not folders.outcome(folder, name).ended}
    num_left = searcher.num_left if searcher else len(left)
    stop = Stop()
    if num_left:
        with stop_on_signal(stop), ray_session():
            needed = examples if searcher else left
            check_sizes(needed)
            make_stages(needed.values(), quiet=quiet)
            with Board(loaded, loaded.num_trials - num_left, earlier=earlier, quiet=quiet) as board:
                begin = partial(Experiment, folder, max_failures=config.max_failures, stop=stop, watch=board, work=work)
                if isinstance(config.scheduler, PBTConfig):
                    _by_generations(begin, Population(folder, config, trials), config.budget.seconds, board)
                else:
                    scheduler = make_scheduler(config, folder, examples | trials)
                    begin(left, scheduler=scheduler, searcher=searcher, seconds=config.budget.seconds).run()
    result = gather(loaded, folder)
    if stop.requested:
        raise Interrupted(f"stopped; what is finished is in {folder}: go on with --resume")
    return result


def _by_generations(
    begin: Callable[..., Experiment], population: Population, seconds: float | None, board: Board
) -> None:
    """One experiment for each generation."""
    start = time.monotonic()

    def generation(trials: Mapping[str, RunConfig], until: int) -> None:
        rest = None if seconds is None else max(0.0, seconds - (time.monotonic() - start))
        begin(trials, seconds=rest, work=PartOfRun(until), ends=False).run()

    population.train(generation, board.took_over)


def _configs(loaded: Sweep) -> dict[str, RunConfig]:
    return {point.id: folders.with_absolute_output_dir(point.config) for point in loaded.points}


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
    if console is None:
        usual = Console()
        console = usual if usual.is_terminal else Console(width=max(usual.width, WIDTH))
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
