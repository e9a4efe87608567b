"""What the rows allow to be said, each with its interval: the claims made for DPO, and which method scored higher.

RLHF is PPO on a learned reward where that was run, else PPO on the ground truth. Methods are compared at their best
setting (see `groups.best`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raylign.compare.records import RunRecord
from raylign.compare.report.groups import Group, best, held_back, methods, paired
from raylign.compare.report.intervals import Answer, Interval, bootstrap, difference, mean_of, over_seeds, ratio, wins

Verdict = Literal["supported", "not supported", "inconclusive"]
FASTER = "DPO is faster and lighter than RLHF"
BETTER = "DPO can outperform RLHF on summarization"
_LOWER: dict[Answer, Verdict] = {"below": "supported", "above": "not supported", "inconclusive": "inconclusive"}
_HIGHER: dict[Answer, Verdict] = {"above": "supported", "below": "not supported", "inconclusive": "inconclusive"}


@dataclass(frozen=True)
class Claim:
    """A claim, what these data say of it, and why."""

    text: str
    verdict: Verdict
    why: str
    runs: tuple[str, ...] = ()


def claims(rows: Sequence[RunRecord], task: str | None, target: float | None = None) -> list[Claim]:
    """The two claims, in a fixed order.

    Args:
        task: name of the embedded task; the second claim is about `summarize` alone.
        target: see `reached_by_all`.
    """
    pair = contenders(rows)
    if pair is None:
        why = "it needs a dpo and a ppo method in the comparison, both with runs that ended"
        return [Claim(FASTER, "inconclusive", why), Claim(BETTER, "inconclusive", why)]
    return [_faster(*pair, rows, target), _better(*pair, task)]


def contenders(rows: Sequence[RunRecord]) -> tuple[Group, Group] | None:
    """DPO and RLHF, each at its best setting."""
    found = list(methods(rows).values())
    dpo = next((settings for settings in found if settings[0].rows[0].algorithm == "dpo"), None)
    ppo = [settings for settings in found if settings[0].rows[0].algorithm == "ppo"]
    rlhf = next((settings for settings in ppo if settings[0].rows[0].learned_reward), ppo[0] if ppo else None)
    return (best(dpo), best(rlhf)) if dpo and rlhf else None


def reached_by_all(chosen: Sequence[Group], target: float | None = None) -> float:
    """`target`, or the highest score that every run of these groups ended with: equal score for all of them."""
    return min(row.score_after for group in chosen for row in group.rows) if target is None else target


def seconds_to(row: RunRecord, score: float) -> float | None:
    """Device-seconds of learning after which a run first was judged at `score` or more; None if it never was.

    The start does not count: nothing was learned.
    """
    judged = (p for p in row.curve if p.step > 0 and p.score is not None and p.score >= score)
    return next((p.device_seconds for p in judged), None)


def higher(one: Group, other: Group) -> Interval:
    """Difference of their scores on the prompts that no setting was chosen by."""
    return difference([held_back(row) for row in one.rows], [held_back(row) for row in other.rows])


def win_rate(one: Group, other: Group, *, odd: bool = True) -> Interval:
    """Of `one` against `other`, prompt by prompt and seed by seed, on the odd-numbered prompts."""
    columns = [wins(*paired(a.after, b.after, odd=odd)[:2]) for a, b in same_seeds(one, other)]
    whole = [column for column in columns if len(column)]
    return bootstrap(_even(whole), mean_of) if whole else Interval(math.nan, num_seeds=0)


def same_seeds(one: Group, other: Group) -> list[tuple[RunRecord, RunRecord]]:
    theirs = {row.seed: row for row in other.rows}
    return [(row, theirs[row.seed]) for row in one.rows if row.seed in theirs]


def verdict(rows: Sequence[RunRecord], task: str | None, target: float | None = None) -> str:
    """One paragraph, from the numbers alone."""
    chosen = [best(settings) for settings in methods(rows).values()]
    seeds = min((len(group.rows) for group in chosen), default=0)
    said = ["Each method at its best setting, chosen on one half of the held-out prompts and judged on the other:"]
    said.append("; ".join(f"{g.title}: score {show(_judged(g))}" for g in chosen) + ".")
    said += _order(chosen)
    for claim in claims(rows, task, target):
        said.append(f"“{claim.text}”: {claim.verdict}: {claim.why}.")
    if seeds < 2:
        said.append("With one seed there is no interval over seeds, so nothing is concluded about the methods.")
    return " ".join(said)


def _judged(group: Group) -> Interval:
    """Its score on the prompts that no setting was chosen by."""
    return over_seeds([held_back(row) for row in group.rows])


def _order(chosen: Sequence[Group]) -> list[str]:
    """Sentences: which method scores higher than which, the highest first, and between which it is inconclusive."""
    ranked = sorted(chosen, key=lambda group: -_judged(group).value)
    said, unknown = [], []
    for i, one in enumerate(ranked):
        lower = []
        for other in ranked[i + 1 :]:
            gap = higher(one, other)
            if gap.against(0) == "above":
                lower.append(f"{other.label} (by {show(gap)})")
            else:
                unknown.append(f"{one.label} or {other.label} ({show(gap, signed=True)})")
        if lower:
            said.append(f"{one.label} scores higher than {', '.join(lower)}.")
    if unknown:
        said.append(f"Which scores higher is inconclusive: {'; '.join(unknown)}.")
    return said


def show(interval: Interval, digits: int = 2, *, signed: bool = False) -> str:
    """`1.52 [1.40, 1.64]`."""
    sign = "+" if signed else ""
    if interval.low is None or interval.high is None:
        return f"{interval.value:{sign}.{digits}f} (one seed, no interval)"
    return f"{interval.value:{sign}.{digits}f} [{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]"


def _faster(dpo: Group, rlhf: Group, rows: Sequence[RunRecord], target: float | None) -> Claim:
    runs = (*dpo.ids, *rlhf.ids)
    goal = reached_by_all([dpo, rlhf], target)
    start = max(row.score_before for group in (dpo, rlhf) for row in group.rows)
    if goal <= start:
        why = f"not every run of both rose above the start ({start:.2f}), so there is no equal score to compare at"
        return Claim(FASTER, "inconclusive", why, runs)
    ours, theirs = ([seconds_to(row, goal) for row in group.rows] for group in (dpo, rlhf))
    if None in ours or None in theirs:
        missed = dpo.title if None in ours else rlhf.title
        return Claim(FASTER, "inconclusive", f"{missed} did not reach the score {goal:.2f} with every seed", runs)
    time = ratio([s for s in ours if s is not None], [s for s in theirs if s is not None])
    memory = ratio(*([float(row.cost.learning_bytes) for row in g.rows if row.cost] for g in (dpo, rlhf)))
    copies = [{row.cost.model_copies for row in g.rows if row.cost} for g in (dpo, rlhf)]
    parts: list[Verdict] = [_LOWER[time.against(1)], _LOWER[memory.against(1)], _fewer(*copies)]
    why = (
        f"at a score of {goal:.2f}, {dpo.label} took {show(time)} times the device-seconds of {rlhf.label} and "
        f"{show(memory)} times its memory, with {_list(copies[0])} copies of the model against {_list(copies[1])}"
    )
    extra = _with_stages(dpo, rlhf, rows, goal)
    return Claim(FASTER, _all(parts), f"{why}{extra}", runs)


def _with_stages(dpo: Group, rlhf: Group, rows: Sequence[RunRecord], goal: float) -> str:
    """The same ratio where each also pays for the runs that it needs and not all methods do."""
    common = common_stages(rows)
    totals = []
    for group in (dpo, rlhf):
        stages = [sum(s.cost.total_device_seconds for s in row.stages if s.name not in common) for row in group.rows]
        totals.append([(seconds_to(row, goal) or math.nan) + s for row, s in zip(group.rows, stages, strict=True)])
    if not all(math.isfinite(value) and value > 0 for total in totals for value in total):
        return ""
    return f" ({show(ratio(*totals))} times where each also pays for the pairs and reward models that it needs)"


def common_stages(rows: Sequence[RunRecord]) -> set[str]:
    """Names of the runs that every learning method needs: the start."""
    needed = [{s.name for s in row.stages} for row in rows if row.done and row.algorithm != "best_of_n"]
    return set.intersection(*needed) if needed else set()


def _better(dpo: Group, rlhf: Group, task: str | None) -> Claim:
    runs = (*dpo.ids, *rlhf.ids)
    rate = win_rate(dpo, rlhf)
    if rate.num_seeds == 0:
        return Claim(BETTER, "inconclusive", "the runs kept no samples of the same prompts", runs)
    why = f"{dpo.title} wins {100 * rate.value:.0f} % of the prompts against {rlhf.title}"
    why += f" [{100 * (rate.low or 0):.0f}, {100 * (rate.high or 0):.0f}]" if rate.known else ""
    if task != "summarize":
        return Claim(BETTER, "inconclusive", f"these runs are not on summarize; here {why}", runs)
    if rate.num_seeds < 2:
        return Claim(BETTER, "inconclusive", f"{why}, with one seed", runs)
    return Claim(BETTER, _HIGHER[rate.against(0.5)], why, runs)


def _fewer(ours: set[int], theirs: set[int]) -> Verdict:
    if len(ours) != 1 or len(theirs) != 1 or ours == theirs:
        return "inconclusive"
    return "supported" if min(ours) < min(theirs) else "not supported"


def _all(parts: Sequence[Verdict]) -> Verdict:
    if "not supported" in parts:
        return "not supported"
    return "inconclusive" if "inconclusive" in parts else "supported"


def _even(columns: list[np.ndarray]) -> list[np.ndarray]:
    """Cut to the shortest: a prompt that could not be scored is missing somewhere."""
    shortest = min(len(column) for column in columns)
    return [column[:shortest] for column in columns]


def _list(numbers: set[int]) -> str:
    return " or ".join(str(number) for number in sorted(numbers))
