"""The sections of a report, in order: each explains itself, draws its figure and names its runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.compare.exact.scores import optimum_curve
from raylign.compare.records import RunRecord
from raylign.compare.report import cost_figures, score_figures, tables
from raylign.compare.report.drawing import save
from raylign.compare.report.model import Section
from raylign.compare.report.score_figures import Rival
from raylign.config.compare import CompareConfig


@dataclass(frozen=True)
class ReportData:
    """Input of all sections: the spec, the records, and where figures are saved."""

    spec: CompareConfig
    records: Sequence[RunRecord]
    folder: Path  # of the report; figures are saved below it

    @property
    def done(self) -> list[RunRecord]:
        """Records of the runs that did not fail."""
        return [record for record in self.records if record.done]

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    @property
    def seeds_note(self) -> str:
        """A sentence to append if there is one seed, else empty."""
        return "" if len(self.spec.seeds) > 1 else " There is one seed, so there are no intervals over seeds."


def make_sections(data: ReportData) -> list[Section]:
    """Make all sections; those with nothing to show are left out."""
    made = (
        _frontier(data),
        _wins(data, "reference answer"),
        _wins(data, "start"),
        _cost_to_score(data),
        _needs(data),
        _stages(data),
        _robustness(data),
        _over_optimisation(data),
        _lengths(data),
        _samples(data),
        _runs(data),
    )
    return [section for section in made if section]


def _frontier(data: ReportData) -> Section:
    text = (
        "The score of each method against its distance from the reference. Up and to the left is better. Bars that leave the "
        f"picture are longer than shown.{data.seeds_note}"
    )
    if any(record.kl_is_bound for record in data.done):
        text += " The KL of best-of-n is the bound log n - (n - 1) / n."
    figure = save(score_figures.frontier(data.done, optimum_curve(data.done)), data.figures, "frontier")
    return Section("Score against KL", text, _ids(data.done), figure, tables.results(data.done))


def _wins(data: ReportData, rival: Rival) -> Section | None:
    """Win rates against the data's reference answers or the start; None if there is nothing to compare with."""
    rates = score_figures.win_rates(data.done, rival)
    if not rates:
        return None
    opponent = "the start's own completion" if rival == "start" else "the reference answer of the data"
    text = (
        f"Prompt by prompt against {opponent}. Bars are 95 % percentile bootstrap intervals over seeds and prompts. At equal "
        "length: the logistic regression of the wins on the difference of lengths, evaluated at a difference of 0."
    )
    if len(data.spec.seeds) < 2:
        text += " With one seed they cover only its prompts."
    figure = save(
        score_figures.win_rate_figure(data.done, rates, rival), data.figures, f"win_rate_{rival.replace(' ', '_')}"
    )
    ids = tuple(record.id for won in rates for record in won.group.records)
    return Section(f"Win rate against the {rival}", text, ids, figure, tables.win_table(rates, rival))


def _cost_to_score(data: ReportData) -> Section | None:
    learned = cost_figures.learners(data.done)
    if not learned:
        return None
    drawn, goal, reached = cost_figures.cost_to_score(learned, data.spec.target_score)
    text = (
        "For offline methods, which are evaluated only at their end, this is the cost of the whole run; for online methods, the "
        "cost until they were first evaluated at the score or above."
    )
    if data.spec.target_score is None:
        text += " The target is the highest score that the best setting of every method reached with every seed."
    if goal <= max(record.score_before for record in learned):
        text += " Here the target is not above the score of the start, so these costs say little."
    figure = save(drawn, data.figures, "cost_to_score")
    table = tables.to_reach(goal, reached, data.spec.price_per_device_hour)
    return Section("Cost to reach a score", text, _ids(learned), figure, table)


def _needs(data: ReportData) -> Section:
    text = (
        "Device-seconds that each role reserved, and peak memory of its largest actor, libraries included. "
        "Definitions are in docs/compare.md."
    )
    figure = save(cost_figures.where_it_went(data.done), data.figures, "costs")
    table = tables.needs(data.done, data.spec.price_per_device_hour)
    return Section("What each method needs", text, _ids(data.done), figure, table)


def _stages(data: ReportData) -> Section | None:
    shared = tables.stages(data.done, data.spec.price_per_device_hour)
    text = "Each stage is made once; its cost is not included in the costs of the runs above."
    return Section("Shared stages", text, _ids(data.done), None, shared) if shared.rows else None


def _robustness(data: ReportData) -> Section:
    text = f"How much the score depends on the settings that were tried.{data.seeds_note}"
    figure = save(score_figures.robustness(data.done), data.figures, "robustness")
    return Section("Robustness to settings", text, _ids(data.done), figure, tables.spread(data.done))


def _over_optimisation(data: ReportData) -> Section:
    learned = cost_figures.learners(data.done)
    text = (
        "A reward is over-optimised if the score falls while the KL grows, or if the learned reward rises and the score does "
        "not."
    )
    if not any(record.learned_reward for record in data.done):
        text += " No method of this comparison used a learned reward, so the score is also the training objective."
    figure = save(score_figures.over_optimisation(learned), data.figures, "over_optimisation")
    return Section("Over-optimisation", text, _ids(learned), figure)


def _lengths(data: ReportData) -> Section:
    text = f"A higher score may come from longer completions alone.{data.seeds_note}"
    return Section(
        "Length growth", text, _ids(data.done), save(score_figures.lengths(data.done), data.figures, "lengths")
    )


def _samples(data: ReportData) -> Section | None:
    shown = tables.samples(data.done)
    text = "The first held-out prompts, not selected; each method at its best setting, first seed; scores in brackets."
    return Section("Samples", text, _ids(data.done), None, shown) if shown.rows else None


def _runs(data: ReportData) -> Section:
    text = "Every run, and the command that repeats it."
    return Section("Runs", text, _ids(data.records), None, tables.runs(data.records, data.folder))


def _ids(records: Iterable[RunRecord]) -> tuple[str, ...]:
    return tuple(record.id for record in records)
