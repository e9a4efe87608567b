"""Conclusions from the records, with their intervals: the claims made for DPO, and which method scored higher.

RLHF is PPO on a learned reward if the comparison has it, else PPO on the ground truth. Methods are compared at their
best setting (see `groups.best`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raylign.compare.records import RunRecord
from raylign.compare.report.groups import Group, best, methods, paired, score_on_odd_prompts
from raylign.compare.report.intervals import Answer, Interval, bootstrap, difference, mean_of, over_seeds, ratio, wins

Verdict = Literal["supported", "not supported", "inconclusive"]
FASTER = "DPO is faster and lighter than RLHF"
BETTER = "DPO can outperform RLHF on summarization"
_LOWER: dict[Answer, Verdict] = {"below": "supported", "above": "not supported", "inconclusive": "inconclusive"}
_HIGHER: dict[Answer, Verdict] = {"above": "supported", "below": "not supported", "inconclusive": "inconclusive"}


@dataclass(frozen=True)
class Claim:
    """A claim, the verdict of these runs on it, and the reason."""

    text: str
    verdict: Verdict
    why: str
    runs: tuple[str, ...] = ()


def claims(records: Sequence[RunRecord], task: str | None, target: float | None = None) -> list[Claim]:
    """Return the two claims, always in the same order.

    Args:
        task: name of the embedded task; the second claim is about `summarize` alone.
        target: see `reached_by_all`.
    """
    pair = contenders(records)
    if pair is None:
        why = "it needs a dpo and a ppo method in the comparison, both with finished runs"
        return [Claim(FASTER, "inconclusive", why), Claim(BETTER, "inconclusive", why)]
    return [_faster(*pair, records, target), _better(*pair, task)]


def contenders(records: Sequence[RunRecord]) -> tuple[Group, Group] | None:
    """Return DPO and RLHF, each at its best setting; None if one of them has no finished run."""
    by_method = list(methods(records).values())
    dpo = next((settings for settings in by_method if settings[0].records[0].algorithm == "dpo"), None)
    ppo = [settings for settings in by_method if settings[0].records[0].algorithm == "ppo"]
    rlhf = next((settings for settings in ppo if settings[0].records[0].learned_reward), ppo[0] if ppo else None)
    return (best(dpo), best(rlhf)) if dpo and rlhf else None


def reached_by_all(chosen: Sequence[Group], target: float | None = None) -> float:
    """Return `target`, or the highest score that every run of these groups reached at its end."""
    return min(record.score_after for group in chosen for record in group.records) if target is None else target


def seconds_to(record: RunRecord, score: float) -> float | None:
    """Return the device-seconds of learning until a run was first evaluated at `score` or more; None if it never was.

    The start does not count, because nothing was learned by then.
    """
    evaluated = (p for p in record.curve if p.step > 0 and p.score is not None and p.score >= score)
    return next((p.device_seconds for p in evaluated), None)


def higher(one: Group, other: Group) -> Interval:
    """Return the difference of their scores on the prompts that were not used to choose settings."""
    return difference(
        [score_on_odd_prompts(record) for record in one.records],
        [score_on_odd_prompts(record) for record in other.records],
    )


def win_rate(one: Group, other: Group, *, odd: bool = True) -> Interval:
    """Return the win rate of `one` against `other`, prompt by prompt and seed by seed.

    Args:
        odd: only on the odd-numbered prompts, which were not used to choose settings.
    """
    columns = [wins(*paired(a.after, b.after, odd=odd)[:2]) for a, b in same_seeds(one, other)]
    filled = [column for column in columns if len(column)]
    return bootstrap(_cut_to_shortest(filled), mean_of) if filled else Interval(math.nan, num_seeds=0)


def same_seeds(one: Group, other: Group) -> list[tuple[RunRecord, RunRecord]]:
    """Return the pairs of runs of the two groups that have the same seed."""
    theirs = {record.seed: record for record in other.records}
    return [(record, theirs[record.seed]) for record in one.records if record.seed in theirs]


def verdict(records: Sequence[RunRecord], task: str | None, target: float | None = None) -> str:
    """Return the conclusions as one paragraph, written from the numbers alone."""
    chosen = [best(settings) for settings in methods(records).values()]
    seeds = min((len(group.records) for group in chosen), default=0)
    sentences = [
        "Each method at its best setting, chosen on one half of the held-out prompts and evaluated on the other:"
    ]
    sentences.append("; ".join(f"{g.title}: score {show(_unbiased_score(g))}" for g in chosen) + ".")
    sentences += _order(chosen)
    for claim in claims(records, task, target):
        sentences.append(f"“{claim.text}” is {claim.verdict}: {claim.why}.")
    if seeds < 2:
        sentences.append("With one seed there is no interval over seeds, so nothing is concluded about the methods.")
    return " ".join(sentences)


def _unbiased_score(group: Group) -> Interval:
    """Return the score of a group on the prompts that were not used to choose settings."""
    return over_seeds([score_on_odd_prompts(record) for record in group.records])


def _order(chosen: Sequence[Group]) -> list[str]:
    """Return sentences that rank the methods, the highest first, and name the pairs with an inconclusive order."""
    ranked = sorted(chosen, key=lambda group: -_unbiased_score(group).value)
    sentences, unknown = [], []
    for i, one in enumerate(ranked):
        lower = []
        for other in ranked[i + 1 :]:
            gap = higher(one, other)
            if gap.against(0) == "above":
                lower.append(f"{other.label} (by {show(gap)})")
            else:
                unknown.append(f"{one.label} or {other.label} ({show(gap, signed=True)})")
        if lower:
            sentences.append(f"{one.label} scores higher than {', '.join(lower)}.")
    if unknown:
        sentences.append(f"Which scores higher is inconclusive: {'; '.join(unknown)}.")
    return sentences


def show(interval: Interval, digits: int = 2, *, signed: bool = False) -> str:
    """Format an interval, e.g. `1.52 [1.40, 1.64]`."""
    sign = "+" if signed else ""
    if interval.low is None or interval.high is None:
        return f"{interval.value:{sign}.{digits}f} (one seed, no interval)"
    return f"{interval.value:{sign}.{digits}f} [{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]"


def _faster(dpo: Group, rlhf: Group, records: Sequence[RunRecord], target: float | None) -> Claim:
    runs = (*dpo.ids, *rlhf.ids)
    goal = reached_by_all([dpo, rlhf], target)
    start = max(record.score_before for group in (dpo, rlhf) for record in group.records)
    if goal <= start:
        why = f"not every run of both scored above the start ({start:.2f}), so there is no common score to compare at"
        return Claim(FASTER, "inconclusive", why, runs)
    ours, theirs = ([seconds_to(record, goal) for record in group.records] for group in (dpo, rlhf))
    if None in ours or None in theirs:
        missed = dpo.title if None in ours else rlhf.title
        return Claim(FASTER, "inconclusive", f"{missed} did not reach the score {goal:.2f} with every seed", runs)
    time = ratio([s for s in ours if s is not None], [s for s in theirs if s is not None])
    memory = ratio(*([float(record.cost.learning_bytes) for record in g.records if record.cost] for g in (dpo, rlhf)))
    copies = [{record.cost.model_copies for record in g.records if record.cost} for g in (dpo, rlhf)]
    parts: list[Verdict] = [_LOWER[time.against(1)], _LOWER[memory.against(1)], _fewer(*copies)]
    why = (
        f"at a score of {goal:.2f}, {dpo.label} took {show(time)} times the device-seconds of {rlhf.label} and "
        f"{show(memory)} times its memory, with {_list(copies[0])} copies of the model against {_list(copies[1])}"
    )
    extra = _with_stages(dpo, rlhf, records, goal)
    return Claim(FASTER, _all(parts), f"{why}{extra}", runs)


def _with_stages(dpo: Group, rlhf: Group, records: Sequence[RunRecord], goal: float) -> str:
    """Return the ratio with the stages included that only some methods need; empty if it is not defined."""
    common = common_stages(records)
    totals = []
    for group in (dpo, rlhf):
        stages = [
            sum(s.cost.total_device_seconds for s in record.stages if s.name not in common) for record in group.records
        ]
        totals.append(
            [(seconds_to(record, goal) or math.nan) + s for record, s in zip(group.records, stages, strict=True)]
        )
    if not all(math.isfinite(value) and value > 0 for total in totals for value in total):
        return ""
    return f" ({show(ratio(*totals))} times with the pairs and reward models included that each of them needs)"


def common_stages(records: Sequence[RunRecord]) -> set[str]:
    """Return the names of the stages that every learning method needs, such as the start."""
    needed = [{s.name for s in record.stages} for record in records if record.done and record.algorithm != "best_of_n"]
    return set.intersection(*needed) if needed else set()


def _better(dpo: Group, rlhf: Group, task: str | None) -> Claim:
    runs = (*dpo.ids, *rlhf.ids)
    rate = win_rate(dpo, rlhf)
    if rate.num_seeds == 0:
        return Claim(BETTER, "inconclusive", "the runs kept no samples for the same prompts", runs)
    why = f"{dpo.title} wins {100 * rate.value:.0f} % of the prompts against {rlhf.title}"
    why += f" [{100 * (rate.low or 0):.0f}, {100 * (rate.high or 0):.0f}]" if rate.known else ""
    if task != "summarize":
        return Claim(BETTER, "inconclusive", f"these runs are not on summarize; on their task {why}", runs)
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


def _cut_to_shortest(columns: list[np.ndarray]) -> list[np.ndarray]:
    """Cut all columns to the shortest; a prompt that could not be scored is missing in some."""
    shortest = min(len(column) for column in columns)
    return [column[:shortest] for column in columns]


def _list(numbers: set[int]) -> str:
    return " or ".join(str(number) for number in sorted(numbers))
