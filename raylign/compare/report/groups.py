"""Records grouped by setting and by method, and the best setting of a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raylign.compare.records import RunRecord
from raylign.compare.report.intervals import Floats, Interval, over_seeds
from raylign.compare.samples import Sample


@dataclass(frozen=True)
class Group:
    """The runs of one method at one setting, one record for each seed."""

    method: str
    label: str
    setting: dict[str, Any]
    records: tuple[RunRecord, ...]

    @property
    def title(self) -> str:
        return f"{self.label}, {format_values(self.setting)}"

    @property
    def ids(self) -> list[str]:
        return [record.id for record in self.records]

    @property
    def score(self) -> Interval:
        return over_seeds([record.score_after for record in self.records])

    @property
    def kl(self) -> Interval:
        return over_seeds([record.kl if record.kl is not None else math.nan for record in self.records])


def groups(records: Sequence[RunRecord]) -> list[Group]:
    """Group the records by method and setting, in their order; failed runs are left out."""
    by_setting: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        if record.done:
            by_setting.setdefault((record.method, format_values(record.setting)), []).append(record)
    return [Group(g[0].method, g[0].label, g[0].setting, tuple(g)) for g in by_setting.values()]


def methods(records: Sequence[RunRecord]) -> dict[str, list[Group]]:
    """Return the settings of each method, by its name."""
    by_method: dict[str, list[Group]] = {}
    for group in groups(records):
        by_method.setdefault(group.method, []).append(group)
    return by_method


def best(settings: Sequence[Group]) -> Group:
    """Return the setting with the highest mean score over seeds on the even-numbered prompts.

    The odd-numbered ones evaluate it (`score_on_odd_prompts`), so that the choice does not flatter it.
    """
    return max(settings, key=_score_to_choose_by)


def _score_to_choose_by(group: Group) -> float:
    scores = [np.nanmean(column[::2]) for record in group.records if len(column := scores_of(record.after)) > 1]
    score = float(np.mean(scores)) if scores else group.score.value
    return score if math.isfinite(score) else -math.inf


def score_on_odd_prompts(record: RunRecord) -> float:
    """Return the mean score of a run on the odd-numbered prompts; on all of them if no samples were kept."""
    column = scores_of(record.after)
    return float(np.nanmean(column[1::2])) if len(column) > 1 else record.score_after


def scores_of(samples: Sequence[Sample]) -> Floats:
    """Return the scores of the samples: [P], nan where a sample could not be scored."""
    return np.array([math.nan if sample.score is None else sample.score for sample in samples], dtype=np.float64)


def paired(ours: Sequence[Sample], theirs: Sequence[Sample], *, odd: bool = False) -> tuple[Floats, Floats, Floats]:
    """Return our scores, theirs, and how much longer ours are, on the prompts that both have: three of [P].

    Args:
        odd: only the odd-numbered prompts.
    """
    other = {str(sample.prompt): sample for sample in theirs}
    pairs = [(sample, other[str(sample.prompt)]) for sample in ours if str(sample.prompt) in other]
    pairs = [(a, b) for a, b in (pairs[1::2] if odd else pairs) if a.score is not None and b.score is not None]
    one, two = scores_of([a for a, _ in pairs]), scores_of([b for _, b in pairs])
    return one, two, np.array([a.length - b.length for a, b in pairs], dtype=np.float64)


def against_reference_answers(samples: Sequence[Sample]) -> tuple[Floats, Floats, Floats]:
    """Return the same as `paired`, against the reference answer of each prompt.

    Lengths are in words, because reference answers have no tokens.
    """
    known = [
        s
        for s in samples
        if s.score is not None and s.reference_answer is not None and s.reference_answer_score is not None
    ]
    longer = [len(s.completion.split()) - len((s.reference_answer or "").split()) for s in known]
    theirs = np.array([s.reference_answer_score for s in known], dtype=np.float64)
    return scores_of(known), theirs, np.array(longer, dtype=np.float64)


def format_values(setting: dict[str, Any]) -> str:
    """Format a setting, e.g. `beta 0.1, learning_rate 0.0005`."""
    return ", ".join(
        f"{key.rpartition('.')[2]} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
        for key, value in setting.items()
    )
