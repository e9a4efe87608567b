"""`generate`: n samples of every prompt, scored, as a dataset. A collect run, and its rows where the user wants them."""

from __future__ import annotations

from pathlib import Path

from raylign.config import RunConfig
from raylign.controllers.run import RunResult, has_ended, run
from raylign.data.export import check_target, export_rows
from raylign.data.formats import prompt_of
from raylign.data.sources import read_rows


def generate(config: RunConfig, *, out: Path | None = None, resume: bool = False, quiet: bool = False) -> RunResult:
    """Execute a collect run.

    Args:
        config: see `generate_config`.
        out: also write the rows here, as .jsonl or .parquet; the run directory keeps its own.
        resume, quiet: see `run`. A finished run is not repeated, and an `out` that holds its rows already is left.
    Returns:
        The run; its `output` is the dataset.
    Raises:
        UserError: also for an `out` that exists or cannot be written, and for data without prompts, before anything
            is started.
    """
    out = out and out.expanduser().absolute()
    if out:
        check_target(out, may_exist=resume and has_ended(config))
    _check_prompts(config)
    result = run(config, resume=resume, quiet=quiet)
    if out:
        export_rows(result.output, out)
    return result


def _check_prompts(config: RunConfig) -> None:
    """The first row of a file, before the runs that the model needs; the run reads all of them once these are done."""
    if Path(config.data.path).expanduser().is_file():
        rows = read_rows(config.data.model_copy(update={"max_rows": 1}))
        prompt_of(rows[0], rows.place(0))
