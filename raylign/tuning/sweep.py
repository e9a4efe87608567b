"""`raylign sweep`: run the trials of a sweep file with Ray Tune and write the results."""

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
from raylign.config.search_space import Sweep
from raylign.config.sweep import PBTConfig
from raylign.controllers.run import make_stages
from raylign.controllers.stopping import stop_on_signal
from raylign.errors import Interrupted, RaylignError
from raylign.files import write_atomic
from raylign.storage.outputs import fresh_folder, newest_folder, output_base
from raylign.tuning import folders
from raylign.tuning.experiment import Experiment
from raylign.tuning.optuna_searcher import OptunaSearcher, load_suggested_trials
from raylign.tuning.plots import plot_sweep
from raylign.tuning.population import Population, load_exploits
from raylign.tuning.progress import SweepProgress
from raylign.tuning.results import TrialRecord, best_record, load_records, results_table, write_results
from raylign.tuning.schedulers import make_scheduler
from raylign.tuning.size import check_sizes
from raylign.tuning.trainable import RunUntil, Work, run_to_end

MIN_WIDTH = 120  # columns of the results table if the output is not a terminal


@dataclass(frozen=True)
class SweepResult:
    """Folder, results and written files of a sweep."""

    folder: Path
    records: list[TrialRecord]
    best: TrialRecord | None
    files: list[Path]  # results, config of the best trial, figures


def sweep(loaded: Sweep, *, resume: bool = False, quiet: bool = False, work: Work = run_to_end) -> SweepResult:
    """Run every trial of a sweep until it finishes or the scheduler stops it, and write the results.

    Args:
        loaded: see `load_sweep`.
        resume: continue the newest sweep of this name; start a new one if there is none.
        quiet: print nothing.
        work: what each trial executes.
    Raises:
        UserError: the input is wrong; no trial was started.
        PlacementError: no trial was running, and none could be placed within limits.placement.
        Interrupted: stopped by a signal; the results so far are written.
    """
    config = loaded.config
    base = output_base(loaded.trials[0].config.output_dir) / config.name
    folder = (newest_folder(base) if resume else None) or fresh_folder(base)
    examples = _configs(loaded)
    searcher = None
    if config.searcher == "optuna":
        loaded = replace(loaded, trials=load_suggested_trials(loaded.space, folder))
        searcher = OptunaSearcher(loaded, folder, list(examples.values()))
    trials = _configs(loaded)
    earlier = [exploit for _, exploits in sorted(load_exploits(folder).items()) for exploit in exploits]
    folders.prepare(folder, trials, resume=True, changed={exploit.trial for exploit in earlier})
    write_atomic(folder / "sweep.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    left = {name: trial for name, trial in trials.items() if not folders.read_outcome(folder, name).ended}
    num_left = searcher.num_left if searcher else len(left)
    stop = Stop()
    if num_left:
        with stop_on_signal(stop), ray_session():
            to_check = examples if searcher else left
            check_sizes(to_check)
            make_stages(to_check.values(), quiet=quiet)
            num_done = loaded.num_trials - num_left
            with SweepProgress(loaded, num_done, earlier=earlier, quiet=quiet) as progress:
                begin = partial(
                    Experiment, folder, max_failures=config.max_failures, stop=stop, listener=progress, work=work
                )
                if isinstance(config.scheduler, PBTConfig):
                    _run_generations(begin, Population(folder, config, trials), config.budget.max_seconds, progress)
                else:
                    scheduler = make_scheduler(config, folder, examples | trials)
                    max_seconds = config.budget.max_seconds
                    begin(left, scheduler=scheduler, searcher=searcher, max_seconds=max_seconds).run()
    result = collect_results(loaded, folder)
    if stop.requested:
        raise Interrupted(f"stopped; finished trials are kept in {folder}: continue with --resume")
    return result


def _run_generations(
    begin: Callable[..., Experiment], population: Population, max_seconds: float | None, progress: SweepProgress
) -> None:
    """Train a population, with one experiment for each generation."""
    start = time.monotonic()

    def execute(trials: Mapping[str, RunConfig], until: int) -> None:
        left = None if max_seconds is None else max(0.0, max_seconds - (time.monotonic() - start))
        begin(trials, max_seconds=left, work=RunUntil(until), records_early_stops=False).run()

    population.train(execute, progress.exploited)


def _configs(loaded: Sweep) -> dict[str, RunConfig]:
    return {spec.id: folders.with_absolute_output_dir(spec.config) for spec in loaded.trials}


def collect_results(loaded: Sweep, folder: Path) -> SweepResult:
    """Read the results of all trials from disk, and write the results, the best config and the figures."""
    records = load_records(loaded, folder)
    files = write_results(loaded, records, folder)
    best = best_record(records, loaded.config.mode)
    return SweepResult(folder, records, best, files + plot_sweep(loaded, records, folder))


def show_results(loaded: Sweep, result: SweepResult, console: Console | None = None) -> None:
    """Print the results table and the files written.

    Raises:
        RaylignError: trials failed, or none finished.
    """
    if console is None:
        usual = Console()
        console = usual if usual.is_terminal else Console(width=max(usual.width, MIN_WIDTH))
    console.print(results_table(loaded, result.records))
    for file in result.files:
        console.print(escape(str(file)), soft_wrap=True, highlight=False)
    failed = [record for record in result.records if record.status == "failed"]
    if failed:
        first = failed[0]
        raise RaylignError(
            f"{len(failed)} of {len(result.records)} trials failed, first trial {first.id}: {first.error}; find the cause "
            f"in {first.folder}, then continue with --resume"
        )
    if result.best is None:
        raise RaylignError(f"no trial finished; continue with --resume, or raise budget.max_seconds ({result.folder})")
