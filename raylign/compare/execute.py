"""Making the runs: the one place where a comparison meets what executes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from raylign.compare.exact.scores import without_noise
from raylign.compare.expand import PlannedRun
from raylign.compare.read import failed_record, read_record
from raylign.compare.records import RunRecord, attach_reference_answers, split_reference_pass_cost
from raylign.controllers.stages import Stage
from raylign.controllers.stages import plan as plan_stages
from raylign.tuning.trials import Trial, run_trials


def make_records(planned: Sequence[PlannedRun], folder: Path, note: Callable[[str], None]) -> list[RunRecord]:
    """Every run made, or found done, as a row."""
    results = run_trials([Trial(one.id, one.config) for one in planned], folder, note=note)
    rows = []
    for one, result in zip(planned, results, strict=True):
        if result.folder is None or result.error is not None:
            rows.append(failed_record(one, result.error or "no result"))
        else:
            rows.append(without_noise(read_record(one, result.folder, stages_of(plan_stages(one.config)))))
    return attach_reference_answers(split_reference_pass_cost(rows))


def stages_of(stage: Stage) -> list[Path]:
    """Folders of all runs that a run needs, each once, in the order in which they were made."""
    found: list[Path] = []
    for needed in stage.needs.values():
        found += [folder for folder in [*stages_of(needed), needed.folder] if folder not in found]
    return found
