"""Rows gathered: the seeds of a setting, the settings of a method, and which setting was the best."""

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
    """The runs of one method at one setting, a row a seed."""

    method: str
    label: str
    setting: dict[str, Any]
    rows: tuple[RunRecord, ...]

    @property
    def title(self) -> str:
        return f"{self.label}, {format_values(self.setting)}"

    @property
    def ids(self) -> list[str]:
        return [row.id for row in self.rows]

    @property
    def score(self) -> Interval:
        return over_seeds([row.score_after for row in self.rows])

    @property
    def kl(self) -> Interval:
        return over_seeds([row.kl if row.kl is not None else math.nan for row in self.rows])


def groups(rows: Sequence[RunRecord]) -> list[Group]:
    """In the order of the rows; runs that failed are not there."""
    found: dict[tuple[str, str], list[RunRecord]] = {}
    for row in rows:
        if row.done:
            found.setdefault((row.method, format_values(row.setting)), []).append(row)
    return [Group(g[0].method, g[0].label, g[0].setting, tuple(g)) for g in found.values()]


def methods(rows: Sequence[RunRecord]) -> dict[str, list[Group]]:
    """The settings of each method, by its name."""
    found: dict[str, list[Group]] = {}
    for group in groups(rows):
        found.setdefault(group.method, []).append(group)
    return found


def best(settings: Sequence[Group]) -> Group:
    """The setting with the highest mean score over seeds on the even-numbered prompts; the odd-numbered ones are for
    judging it (`held_back`), so that the choice does not flatter it."""
    return max(settings, key=_chosen_by)


def _chosen_by(group: Group) -> float:
    scores = [np.nanmean(column[::2]) for row in group.rows if len(column := scores_of(row.after)) > 1]
    found = float(np.mean(scores)) if scores else group.score.value
    return found if math.isfinite(found) else -math.inf


def held_back(row: RunRecord) -> float:
    """Mean score of a run on the odd-numbered prompts; of all where there are no samples."""
    column = scores_of(row.after)
    return float(np.nanmean(column[1::2])) if len(column) > 1 else row.score_after


def scores_of(samples: Sequence[Sample]) -> Floats:
    """[P]; nan where a sample could not be scored."""
    return np.array([math.nan if sample.score is None else sample.score for sample in samples], dtype=np.float64)


def paired(ours: Sequence[Sample], theirs: Sequence[Sample], *, odd: bool = False) -> tuple[Floats, Floats, Floats]:
    """Scores of both and how much longer ours is, on the prompts that both have: three of [P].

    Args:
        odd: the odd-numbered prompts alone.
    """
    other = {str(sample.prompt): sample for sample in theirs}
    pairs = [(sample, other[str(sample.prompt)]) for sample in ours if str(sample.prompt) in other]
    pairs = [(a, b) for a, b in (pairs[1::2] if odd else pairs) if a.score is not None and b.score is not None]
    one, two = scores_of([a for a, _ in pairs]), scores_of([b for _, b in pairs])
    return one, two, np.array([a.length - b.length for a, b in pairs], dtype=np.float64)


def against_references(samples: Sequence[Sample]) -> tuple[Floats, Floats, Floats]:
    """As `paired`, against the reference answer of each prompt; lengths in words, for references have no tokens."""
    known = [s for s in samples if s.score is not None and s.reference is not None and s.reference_score is not None]
    longer = [len(s.completion.split()) - len((s.reference or "").split()) for s in known]
    theirs = np.array([s.reference_score for s in known], dtype=np.float64)
    return scores_of(known), theirs, np.array(longer, dtype=np.float64)


def format_values(setting: dict[str, Any]) -> str:
    """`beta 0.1, learning_rate 0.0005`."""
    return ", ".join(
        f"{key.rpartition('.')[2]} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
        for key, value in setting.items()
    )
