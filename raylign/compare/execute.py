"""Executes the runs of a comparison as trials, and reads their records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from raylign.compare.exact.scores import with_exact_scores
from raylign.compare.expand import PlannedRun
from raylign.compare.read import failed_record, read_record
from raylign.compare.records import RunRecord, attach_reference_answers, split_reference_pass_cost
from raylign.pipeline.stages import Stage, build_graph
from raylign.tuning.trials import Trial, run_trials


def make_records(planned: Sequence[PlannedRun], folder: Path, note: Callable[[str], None]) -> list[RunRecord]:
    """Execute the runs that are not finished yet, and return the records of all."""
    results = run_trials([Trial(one.id, one.config) for one in planned], folder, note=note)
    records = []
    for one, result in zip(planned, results, strict=True):
        if result.folder is None or result.error is not None:
            records.append(failed_record(one, result.error or "no result"))
        else:
            records.append(with_exact_scores(read_record(one, result.folder, stages_of(build_graph(one.config)))))
    return attach_reference_answers(split_reference_pass_cost(records))


def stages_of(stage: Stage) -> list[Path]:
    """Return the folders of all stages that a run needs, each once, in the order in which they were made."""
    folders: list[Path] = []
    for needed in stage.needs.values():
        folders += [folder for folder in [*stages_of(needed), needed.folder] if folder not in folders]
    return folders
