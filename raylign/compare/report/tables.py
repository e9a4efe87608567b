"""Tables of a report: lists of cells, all text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from raylign.compare.costing import Cost
from raylign.compare.records import RunRecord, StageUse
from raylign.compare.report.claims import show
from raylign.compare.report.cost_figures import GIB
from raylign.compare.report.groups import Group, best, groups, methods
from raylign.compare.report.intervals import Interval, over_positive, over_seeds
from raylign.compare.report.model import Table
from raylign.compare.report.score_figures import WinRate

NOT_KNOWN = "-"


def results(rows: Sequence[RunRecord]) -> Table:
    """Every setting, mean over its seeds."""
    cells = []
    for group in groups(rows):
        grown = over_seeds([row.length_after - row.length_before for row in group.rows])
        cells.append(
            (
                group.title,
                str(len(group.rows)),
                show(group.score),
                _kl(group),
                show(grown, 1, signed=True),
                _share(group),
            )
        )
    return Table(("setting", "seeds", "score", "KL (nats)", "length (tokens)", "finished"), tuple(cells))


def needs(rows: Sequence[RunRecord], price: float | None) -> Table:
    """What each method needs, mean over its runs, a column a method; stages are in a table of their own."""
    found = {g[0].label: [row for group in g for row in group.rows if row.cost] for g in methods(rows).values()}
    found = {label: runs for label, runs in found.items() if runs}
    lines: list[tuple[str, Callable[[RunRecord, Cost], float], int]] = [
        ("optimizer steps", lambda row, cost: row.optimizer_steps, 0),
        ("tokens generated", lambda row, cost: cost.tokens_generated, 0),
        ("tokens trained, as often as passed", lambda row, cost: cost.tokens_trained, 0),
        ("TFLOP", lambda row, cost: cost.flops / 1e12, 3),
        ("wall time (s)", lambda row, cost: cost.wall_seconds, 0),
        ("of it starting actors (s)", lambda row, cost: cost.start_seconds, 0),
        ("device-seconds", lambda row, cost: cost.total_device_seconds, 0),
        ("of them learning", lambda row, cost: cost.learning_device_seconds, 0),
        ("memory while learning (GiB)", lambda row, cost: cost.learning_bytes / GIB, 2),
    ]
    if price is not None:
        lines.append((f"money, at {price:g} a device-hour", lambda row, cost: cost.money(price) or 0.0, 4))
    cells = [
        (
            "needs",
            *(", ".join(s.name.rpartition("-")[0] for s in runs[0].stages) or "nothing" for runs in found.values()),
        ),
        ("copies of the model while it learns", *(_copies(runs) for runs in found.values())),
    ]
    for name, value, digits in lines:
        means = ([value(row, row.cost) for row in runs if row.cost] for runs in found.values())
        cells.append((name, *(f"{sum(one) / len(one):,.{digits}f}" for one in means)))
    return Table(("", *found), tuple(cells))


def _copies(runs: Sequence[RunRecord]) -> str:
    kinds = sorted({row.cost.copies_of for row in runs if row.cost}, key=len)
    return "; ".join(f"{len(one)}: {', '.join(one)}" for one in kinds)


def stages(rows: Sequence[RunRecord], price: float | None) -> Table:
    """Runs that others needed, each made once: what it took, and the share of every run that needed it."""
    used: dict[str, tuple[StageUse, list[RunRecord]]] = {}
    for row in rows:
        for stage in row.stages:
            used.setdefault(stage.folder, (stage, []))[1].append(row)
    header = (
        "stage",
        "needed by",
        "runs",
        "wall (s)",
        "device-seconds",
        "share of each run",
        *(("money",) if price is not None else ()),
    )
    cells = []
    for stage, users in used.values():
        whole = stage.cost.total_device_seconds
        line = [
            stage.name,
            ", ".join(dict.fromkeys(row.label for row in users)),
            str(len(users)),
            f"{stage.cost.wall_seconds:,.0f}",
            f"{whole:,.0f}",
            f"{whole / len(users):,.1f}",
        ]
        if price is not None:
            line.append(f"{stage.cost.money(price) or 0.0:.4f}")
        cells.append(tuple(line))
    return Table(header, tuple(cells))


def to_reach(goal: float, found: Sequence[tuple[Group, list[float | None]]], price: float | None) -> Table:
    """What the best setting of each method took to the score."""
    header = (
        "method at its best setting",
        f"seeds that reached {goal:.2f}",
        "device-seconds to it",
        *(("money",) if price is not None else ()),
    )
    cells = []
    for group, seconds in found:
        known = [value for value in seconds if value is not None]
        took = over_positive(known) if known else over_seeds([])
        line = [group.title, f"{len(known)} of {len(seconds)}", show(took, 0) if known else NOT_KNOWN]
        if price is not None:
            line.append(f"{took.value / 3600 * price:.4f}" if known else NOT_KNOWN)
        cells.append(tuple(line))
    return Table(header, tuple(cells))


def win_table(found: Sequence[WinRate], rival: str) -> Table:
    cells = [(won.group.title, _percent(won.rate), _percent(won.at_equal_length)) for won in found]
    return Table(("setting", f"wins against the {rival}", "at equal length"), tuple(cells))


def spread(rows: Sequence[RunRecord]) -> Table:
    """How much the score of a method depends on its settings."""
    cells = []
    for settings in methods(rows).values():
        means = [group.score.value for group in settings]
        top = best(settings)
        near = sum(value > top.score.value - 0.1 * abs(top.score.value - _start(rows)) for value in means)
        cells.append(
            (
                settings[0].label,
                str(len(means)),
                f"{max(means):.2f}",
                f"{min(means):.2f}",
                f"{max(means) - min(means):.2f}",
                f"{near} of {len(means)}",
            )
        )
    return Table(
        ("method", "settings", "best mean score", "worst", "spread", "settings within 10 % of the best gain"),
        tuple(cells),
    )


def samples(rows: Sequence[RunRecord], num: int = 4) -> Table:
    """The same prompts, answered by the start and by each method at its best setting, first seed."""
    chosen = [best(settings).rows[0] for settings in methods(rows).values()]
    chosen = [row for row in chosen if row.after]
    if not chosen:
        return Table((), ())
    first = chosen[0].before
    by_prompt = [{str(sample.prompt): sample for sample in row.after} for row in chosen]
    cells = []
    for start in first[:num]:
        answers = [found.get(str(start.prompt)) for found in by_prompt]
        texts = (f"{a.completion.strip()}  ({_score(a.score)})" if a else NOT_KNOWN for a in answers)
        cells.append((str(start.prompt), f"{start.completion.strip()}  ({_score(start.score)})", *texts))
    return Table(("prompt", "start", *(row.label for row in chosen)), tuple(cells), wide=True)


def runs(rows: Sequence[RunRecord], folder: Path) -> Table:
    """Every run, with the command that makes it again."""
    cells = []
    for row in rows:
        score = NOT_KNOWN if not row.done else f"{row.score_after:.3f}"
        kl = NOT_KNOWN if row.kl is None else f"{row.kl:.2f}"
        config = Path(row.config)
        told = config.relative_to(folder).as_posix() if config.is_relative_to(folder) else config.name
        cells.append((row.id, score, kl, row.error or "done", f"raylign run {told}"))
    return Table(("run", "score", "KL", "state", "again, in the comparison's folder"), tuple(cells))


def _start(rows: Sequence[RunRecord]) -> float:
    return over_seeds([row.score_before for row in rows if row.done]).value


def _kl(group: Group) -> str:
    if not math.isfinite(group.kl.value):
        return NOT_KNOWN
    return f"at most {group.kl.value:.2f}" if group.rows[0].kl_is_bound else show(group.kl)


def _share(group: Group) -> str:
    share = over_seeds([row.finished for row in group.rows])
    return NOT_KNOWN if not math.isfinite(share.value) else f"{100 * share.value:.0f} %"


def _percent(interval: Interval) -> str:
    ends = f" [{100 * (interval.low or 0):.0f}, {100 * (interval.high or 0):.0f}]"
    return f"{100 * interval.value:.0f} %{ends}"


def _score(score: float | None) -> str:
    return "no score" if score is None else f"{score:+.2f}"
