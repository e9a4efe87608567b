"""Making the runs: the one place where a comparison meets what executes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylign.compare.exact_rows import without_noise
from raylign.compare.plans import PlannedRun
from raylign.compare.rows import Row, failed_row, read_row, share_reference
from raylign.config import RunConfig
from raylign.controllers.stages import Stage
from raylign.controllers.stages import plan as plan_stages
from raylign.errors import Interrupted, RaylignError, UserError


@dataclass(frozen=True)
class Trial:
    """A run to be made."""

    id: str
    config: RunConfig


@dataclass(frozen=True)
class TrialResult:
    """What came of it: a folder and a summary, or an error."""

    id: str
    folder: Path | None
    summary: dict[str, Any] | None
    error: str | None


def run_trials(
    trials: Sequence[Trial],
    folder: Path,
    *,
    resume: bool = True,
    max_failures: int = 1,
    note: Callable[[str], None] = lambda text: None,
) -> list[TrialResult]:
    """One after another on one Ray; what is done is not done again, and what fails does not stop the others.

    Args:
        folder: of the comparison; the configs say it themselves.
        max_failures: how often a run is tried again, from its last commit.
    """
    from raylign.actors.session import ray_session

    results = []
    with ray_session():
        for number, trial in enumerate(trials, 1):
            note(f"{number} of {len(trials)}: {trial.id}")
            results.append(_run_trial(trial, resume, max_failures))
    return results


def _run_trial(trial: Trial, resume: bool, max_failures: int) -> TrialResult:
    from raylign.controllers.run import run

    error = ""
    for _ in range(1 + max_failures):
        try:
            done = run(trial.config, resume=resume, quiet=True)
        except Interrupted:
            raise
        except UserError as e:  # the same again would end the same way
            return TrialResult(trial.id, None, None, str(e))
        except RaylignError as e:
            error = str(e)
        else:
            return TrialResult(trial.id, done.folder, done.summary, None)
    return TrialResult(trial.id, None, None, error)


def make_rows(planned: Sequence[PlannedRun], folder: Path, note: Callable[[str], None]) -> list[Row]:
    """Every run made, or found done, as a row."""
    results = run_trials([Trial(one.id, one.config) for one in planned], folder, note=note)
    rows = []
    for one, result in zip(planned, results, strict=True):
        if result.folder is None or result.error is not None:
            rows.append(failed_row(one, result.error or "no result"))
        else:
            rows.append(without_noise(read_row(one, result.folder, stages_of(plan_stages(one.config)))))
    return share_reference(rows)


def stages_of(stage: Stage) -> list[Path]:
    """Folders of all runs that a run needs, each once, in the order in which they were made."""
    found: list[Path] = []
    for needed in stage.needs.values():
        found += [folder for folder in [*stages_of(needed), needed.folder] if folder not in found]
    return found
