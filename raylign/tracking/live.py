"""The live panel in a terminal: progress, metrics with their history, and seconds of each section of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from raylign.config.traits import Headline
from raylign.tracking.console import progress_console
from raylign.tracking.progress import Progress, format_clock, format_seconds, format_value, sparkline

ACCENT = "cyan"
MAX_WIDTH = 120
NARROW = 60


class LiveView:
    """A panel that redraws itself four times a second in its own thread, so that its clock runs while the run waits.

    Notes, and whatever the program prints, scroll by above the panel.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        *,
        console: Console | None = None,
        first_step: int = 0,
        headline: Headline,
    ) -> None:
        self._progress = Progress(title, total_steps, first_step, headline=headline)
        self._console = console or progress_console()
        self._spinner = Spinner("dots", style=ACCENT)
        self._ending: Text | None = None
        self._live = Live(self, console=self._console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        took = format_clock(self._progress.elapsed)
        if kind is None:
            self._ending = Text(f"✓ finished in {took}", style="bold green")
        else:
            self._ending = Text(f"✗ stopped after {took}", style="bold red")
        self._live.stop()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self._progress.update(step, metrics)

    def status(self, text: str) -> None:
        self._progress.set_status(text)

    def note(self, text: str) -> None:
        self._console.print(Text.assemble(("• ", ACCENT), text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, MAX_WIDTH)
        progress, inner = self._progress, width - 4
        parts: list[RenderableType] = [self._head(), _bar(progress)]
        if progress.metrics:
            parts += [Text(), self._body(inner)]
        yield Panel(
            Group(*parts),
            title=Text(progress.title, style="bold"),
            title_align="left",
            box=box.ROUNDED,
            border_style="dim",
            padding=(0, 1),
            width=width,
        )

    def _head(self) -> RenderableType:
        row = Table.grid(expand=True)
        row.add_column(width=2)
        row.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
        row.add_column(justify="right")
        total = Text(format_clock(self._progress.elapsed), style="dim")
        if self._ending is not None:
            row.add_row("", self._ending, "")
        else:
            status = Text.assemble(self._progress.status, (f"  {format_clock(self._progress.status_elapsed)}", "dim"))
            row.add_row(self._spinner, status, total)
        return row

    def _body(self, width: int) -> RenderableType:
        # Half the panel for metrics, half for time; on a narrow terminal the metrics alone.
        if width < NARROW or not self._progress.sections:
            return _metrics(self._progress, width)
        row = Table.grid(padding=(0, 0))
        left = width * 6 // 11
        row.add_column(width=left)
        row.add_column(width=4)
        row.add_column(width=width - left - 4)
        row.add_row(_metrics(self._progress, left), "", _sections(self._progress))
        return row


def _bar(progress: Progress) -> RenderableType:
    row = Table.grid(expand=True, padding=(0, 2, 0, 0))
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(justify="right", no_wrap=True)
    speed, eta = progress.tokens_per_second, progress.eta
    pace = [] if speed is None else [f"{format_value(speed)} tokens/s"]
    pace += [] if eta is None else [f"eta {format_clock(eta)}"]
    bar = ProgressBar(
        total=progress.total_steps, completed=progress.step, complete_style=ACCENT, finished_style="green"
    )
    row.add_row(f"step {progress.step}/{progress.total_steps}", bar, "  ".join(pace))
    return row


def _metrics(progress: Progress, width: int) -> Table:
    name_width, value_width = 12, 9
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=name_width, no_wrap=True)
    table.add_column(width=value_width, justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    spark_width = max(0, width - name_width - value_width - 3)
    main = progress.main
    for name, label in ([main] if main else []) + progress.side:
        line = sparkline(progress.history.get(name, []), spark_width)
        lead = main is not None and name == main[0]
        table.add_row(
            Text(label, style="bold" if lead else "dim"),
            Text(format_value(progress.metrics[name]), style=f"bold {ACCENT}" if lead else ""),
            Text(line, style=ACCENT if lead else "dim"),
        )
    return table


def _sections(progress: Progress) -> Table:
    """Return the seconds of the last step by section, with a bar for each section's share of the step."""
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(width=13, no_wrap=True)
    table.add_column(width=7, justify="right", no_wrap=True)
    table.add_column(ratio=1)
    sections = progress.sections
    whole = progress.metrics.get("time/step", sum(seconds for _, seconds in sections))
    table.add_row(Text("time per step", style="bold"), Text(format_seconds(whole), style="bold"), "")
    for name, seconds in sections:
        share = ProgressBar(total=max(whole, 1e-9), completed=seconds, complete_style=ACCENT, finished_style=ACCENT)
        table.add_row(Text(name.replace("_", " "), style="dim"), format_seconds(seconds), share)
    idle = progress.metrics.get("time/idle_fraction")
    if idle is not None:
        table.add_row(
            Text("idle", style="dim"), f"{idle:.0%}", ProgressBar(total=1.0, completed=idle, complete_style="yellow")
        )
    return table
