"""What a person reads when a run has ended."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raylign.config import DataConfig
from raylign.controllers.run import RunResult
from raylign.data.sources import read_rows
from raylign.storage.run_folder import RunFolder


def show_result(result: RunResult, console: Console | None = None) -> None:
    """Scores before and after, where the time went, a few completions, and where everything is."""
    console = console or Console()
    summary = result.summary
    before, after = summary["score_before"], summary["score_after"]
    line = f"[bold]{summary['name']}[/bold] ({summary['algorithm']}, {summary['steps']} steps, {summary['wall_seconds']:.0f} s)"
    if after is not None:
        line += f": score {before:.3f} -> [bold]{after:.3f}[/bold]"
    if summary["kl"] is not None:
        line += f", KL {summary['kl']:.2f} nats"
    console.print(line)
    table = samples_table(result)
    if table:
        console.print(table)
    console.print(f"run directory: {escape(str(result.folder))}", soft_wrap=True)


def show_dataset(file: Path, console: Console | None = None) -> None:
    """Where the rows of a collect run are, and how many."""
    num_rows = len(read_rows(DataConfig(path=str(file))))
    (console or Console()).print(f"dataset: {escape(str(file))} ({num_rows:,} rows)", soft_wrap=True, highlight=False)


def samples_table(result: RunResult, num: int = 3) -> Table | None:
    """Return the first held-out prompts with their completions before and after; None without such an evaluation."""
    folder = RunFolder(result.folder)
    before, after = folder.samples("before"), folder.samples("after")
    if before is None or after is None:
        return None
    table = Table("prompt", "before", "after", show_lines=True)
    for old, new in zip(before[:num], after[:num], strict=True):
        # What a model wrote may look like markup.
        cells = (f"{escape(s['completion'].strip())}\n[dim]{_number(s['score'])}[/dim]" for s in (old, new))
        table.add_row(escape(old["prompt"]), *cells)
    return table


def _number(score: float | None) -> str:
    return "no score" if score is None else f"score {score:+.2f}"
