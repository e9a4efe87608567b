"""Tables of a report; all cells are text."""

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


def results(records: Sequence[RunRecord]) -> Table:
    """Return the results of every setting, as means over its seeds."""
    cells = []
    for group in groups(records):
        grown = over_seeds([record.length_after - record.length_before for record in group.records])
        cells.append(
            (
                group.title,
                str(len(group.records)),
                show(group.score),
                _kl(group),
                show(grown, 1, signed=True),
                _share(group),
            )
        )
    return Table(("setting", "seeds", "score", "KL (nats)", "length (tokens)", "finished"), tuple(cells))


def needs(records: Sequence[RunRecord], price: float | None) -> Table:
    """Return the cost of each method, as means over its runs, one column per method; see `stages` for stages."""
    by_label = {
        g[0].label: [record for group in g for record in group.records if record.cost]
        for g in methods(records).values()
    }
    by_label = {label: runs for label, runs in by_label.items() if runs}
    lines: list[tuple[str, Callable[[RunRecord, Cost], float], int]] = [
        ("optimizer steps", lambda record, cost: record.optimizer_steps, 0),
        ("tokens generated", lambda record, cost: cost.tokens_generated, 0),
        ("tokens trained, every pass counted", lambda record, cost: cost.tokens_trained, 0),
        ("TFLOP", lambda record, cost: cost.flops / 1e12, 3),
        ("wall time (s)", lambda record, cost: cost.wall_seconds, 0),
        ("of which starting actors (s)", lambda record, cost: cost.start_seconds, 0),
        ("device-seconds", lambda record, cost: cost.total_device_seconds, 0),
        ("of which learning", lambda record, cost: cost.learning_device_seconds, 0),
        ("memory while learning (GiB)", lambda record, cost: cost.learning_bytes / GIB, 2),
    ]
    if price is not None:
        lines.append((f"price, at {price:g} per device-hour", lambda record, cost: cost.money(price) or 0.0, 4))
    cells = [
        (
            "needs",
            *(", ".join(s.name.rpartition("-")[0] for s in runs[0].stages) or "nothing" for runs in by_label.values()),
        ),
        ("copies of the model while it learns", *(_copies(runs) for runs in by_label.values())),
    ]
    for name, value, digits in lines:
        means = ([value(record, record.cost) for record in runs if record.cost] for runs in by_label.values())
        cells.append((name, *(f"{sum(one) / len(one):,.{digits}f}" for one in means)))
    return Table(("", *by_label), tuple(cells))


def _copies(runs: Sequence[RunRecord]) -> str:
    kinds = sorted({record.cost.copies_of for record in runs if record.cost}, key=len)
    return "; ".join(f"{len(one)}: {', '.join(one)}" for one in kinds)


def stages(records: Sequence[RunRecord], price: float | None) -> Table:
    """Return the cost of every stage, which is made once, and the share of each run that needed it."""
    used: dict[str, tuple[StageUse, list[RunRecord]]] = {}
    for record in records:
        for stage in record.stages:
            used.setdefault(stage.folder, (stage, []))[1].append(record)
    header = (
        "stage",
        "needed by",
        "runs",
        "wall (s)",
        "device-seconds",
        "share per run",
        *(("price",) if price is not None else ()),
    )
    cells = []
    for stage, users in used.values():
        total = stage.cost.total_device_seconds
        line = [
            stage.name,
            ", ".join(dict.fromkeys(record.label for record in users)),
            str(len(users)),
            f"{stage.cost.wall_seconds:,.0f}",
            f"{total:,.0f}",
            f"{total / len(users):,.1f}",
        ]
        if price is not None:
            line.append(f"{stage.cost.money(price) or 0.0:.4f}")
        cells.append(tuple(line))
    return Table(header, tuple(cells))


def to_reach(goal: float, reached: Sequence[tuple[Group, list[float | None]]], price: float | None) -> Table:
    """Return the device-seconds that the best setting of each method needed to reach the score."""
    header = (
        "method at its best setting",
        f"seeds that reached {goal:.2f}",
        "device-seconds to it",
        *(("price",) if price is not None else ()),
    )
    cells = []
    for group, seconds in reached:
        known = [value for value in seconds if value is not None]
        took = over_positive(known) if known else over_seeds([])
        line = [group.title, f"{len(known)} of {len(seconds)}", show(took, 0) if known else NOT_KNOWN]
        if price is not None:
            line.append(f"{took.value / 3600 * price:.4f}" if known else NOT_KNOWN)
        cells.append(tuple(line))
    return Table(header, tuple(cells))


def win_table(rates: Sequence[WinRate], rival: str) -> Table:
    """Return the win rate of every setting, raw and at equal length."""
    cells = [(won.group.title, _percent(won.rate), _percent(won.at_equal_length)) for won in rates]
    return Table(("setting", f"wins against the {rival}", "at equal length"), tuple(cells))


def spread(records: Sequence[RunRecord]) -> Table:
    """Return how much the score of each method depends on its settings."""
    cells = []
    for settings in methods(records).values():
        means = [group.score.value for group in settings]
        top = best(settings)
        near = sum(value > top.score.value - 0.1 * abs(top.score.value - _start(records)) for value in means)
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


def samples(records: Sequence[RunRecord], num_prompts: int = 4) -> Table:
    """Return completions of the same prompts by the start and by each method at its best setting, first seed."""
    chosen = [best(settings).records[0] for settings in methods(records).values()]
    chosen = [record for record in chosen if record.after]
    if not chosen:
        return Table((), ())
    first = chosen[0].before
    by_prompt = [{str(sample.prompt): sample for sample in record.after} for record in chosen]
    cells = []
    for start in first[:num_prompts]:
        answers = [by_method.get(str(start.prompt)) for by_method in by_prompt]
        texts = (f"{a.completion.strip()}  ({_score(a.score)})" if a else NOT_KNOWN for a in answers)
        cells.append((str(start.prompt), f"{start.completion.strip()}  ({_score(start.score)})", *texts))
    return Table(("prompt", "start", *(record.label for record in chosen)), tuple(cells), wide=True)


def runs(records: Sequence[RunRecord], folder: Path) -> Table:
    """Return every run, with the command that repeats it."""
    cells = []
    for record in records:
        score = NOT_KNOWN if not record.done else f"{record.score_after:.3f}"
        kl = NOT_KNOWN if record.kl is None else f"{record.kl:.2f}"
        config = Path(record.config)
        shown = config.relative_to(folder).as_posix() if config.is_relative_to(folder) else config.name
        cells.append((record.id, score, kl, record.error or "done", f"raylign run {shown}"))
    return Table(("run", "score", "KL", "state", "command to repeat it, in the comparison's folder"), tuple(cells))


def _start(records: Sequence[RunRecord]) -> float:
    return over_seeds([record.score_before for record in records if record.done]).value


def _kl(group: Group) -> str:
    if not math.isfinite(group.kl.value):
        return NOT_KNOWN
    return f"at most {group.kl.value:.2f}" if group.records[0].kl_is_bound else show(group.kl)


def _share(group: Group) -> str:
    share = over_seeds([record.finished for record in group.records])
    return NOT_KNOWN if not math.isfinite(share.value) else f"{100 * share.value:.0f} %"


def _percent(interval: Interval) -> str:
    ends = f" [{100 * (interval.low or 0):.0f}, {100 * (interval.high or 0):.0f}]"
    return f"{100 * interval.value:.0f} %{ends}"


def _score(score: float | None) -> str:
    return "no score" if score is None else f"{score:+.2f}"
