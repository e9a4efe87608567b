"""Making the runs: the one place where a comparison meets what executes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from raylign.compare.exact_rows import without_noise
from raylign.compare.plans import PlannedRun
from raylign.compare.rows import Row, failed_row, read_row, share_reference, share_references
from raylign.controllers.stages import Stage
from raylign.controllers.stages import plan as plan_stages
from raylign.tuning.trials import Trial, run_trials


def make_rows(planned: Sequence[PlannedRun], folder: Path, note: Callable[[str], None]) -> list[Row]:
    """Every run made, or found done, as a row."""
    results = run_trials([Trial(one.id, one.config) for one in planned], folder, note=note)
    rows = []
    for one, result in zip(planned, results, strict=True):
        if result.folder is None or result.error is not None:
            rows.append(failed_row(one, result.error or "no result"))
        else:
            rows.append(without_noise(read_row(one, result.folder, stages_of(plan_stages(one.config)))))
    return share_references(share_reference(rows))


def stages_of(stage: Stage) -> list[Path]:
    """Folders of all runs that a run needs, each once, in the order in which they were made."""
    found: list[Path] = []
    for needed in stage.needs.values():
        found += [folder for folder in [*stages_of(needed), needed.folder] if folder not in found]
    return found
