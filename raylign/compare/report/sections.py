"""The sections of a report, in their order: each says what to know, draws its figure, and names the runs it is of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raylign.compare.exact.scores import optimum_curve
from raylign.compare.records import RunRecord
from raylign.compare.report import cost_figures, score_figures, tables
from raylign.compare.report.drawing import save
from raylign.compare.report.model import Section
from raylign.config.compare import CompareConfig


@dataclass(frozen=True)
class ReportData:
    """What sections are made of."""

    spec: CompareConfig
    rows: Sequence[RunRecord]
    folder: Path  # of the report; figures are saved below it

    @property
    def done(self) -> list[RunRecord]:
        """Of the runs that did not fail."""
        return [row for row in self.rows if row.done]

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    @property
    def seeds(self) -> str:
        return "" if len(self.spec.seeds) > 1 else " There is one seed, so there are no intervals over seeds."


def make_sections(of: ReportData) -> list[Section]:
    """Sections with nothing to show are left out."""
    made = (
        _frontier(of),
        _wins(of, "reference"),
        _wins(of, "start"),
        _cost_to_score(of),
        _needs(of),
        _stages(of),
        _robustness(of),
        _over_optimisation(of),
        _lengths(of),
        _samples(of),
        _runs(of),
    )
    return [section for section in made if section]


def _frontier(of: ReportData) -> Section:
    text = (
        "How much score each method gains for how far it moved from the reference. Up and to the left is better. A bar "
        f"that leaves the picture goes on.{of.seeds}"
    )
    if any(row.kl_is_bound for row in of.done):
        text += " KL of best-of-n is the bound log n - (n - 1) / n."
    figure = save(score_figures.frontier(of.done, optimum_curve(of.done)), of.figures, "frontier")
    return Section("Score against KL", text, _ids(of.done), figure, tables.results(of.done))


def _wins(of: ReportData, rival: Literal["start", "reference"]) -> Section | None:
    """Against the data's reference answers, or the start; None where there is nothing to win against."""
    rates = score_figures.win_rates(of.done, rival)
    if not rates:
        return None
    whom = "the start's own completion" if rival == "start" else "the reference answer of the data"
    text = (
        f"Prompt by prompt against {whom}. Bars are 95 % percentile bootstrap intervals over seeds and prompts. At equal "
        "length: the logistic regression of the wins on the difference of lengths, read at no difference."
    )
    if len(of.spec.seeds) < 2:
        text += " With one seed they are over its prompts alone."
    figure = save(score_figures.win_rate_figure(of.done, rates, rival), of.figures, f"win_rate_{rival}")
    ids = tuple(row.id for won in rates for row in won.group.rows)
    return Section(f"Win rate against the {rival}", text, ids, figure, tables.win_table(rates, rival))


def _cost_to_score(of: ReportData) -> Section | None:
    learned = cost_figures.learners(of.done)
    if not learned:
        return None
    drawn, goal, reached = cost_figures.cost_to_score(learned, of.spec.target_score)
    text = (
        "Offline methods are judged only when they have ended, so theirs is the cost of the whole run; online methods when "
        "they were first judged at the score or above."
    )
    if of.spec.target_score is None:
        text += " The score asked for is the highest that the best setting of every method reached with every seed."
    if goal <= max(row.score_before for row in learned):
        text += " Here that is no higher than the start, so the costs say little."
    figure = save(drawn, of.figures, "cost_to_score")
    table = tables.to_reach(goal, reached, of.spec.price_per_device_hour)
    return Section("Cost to reach a score", text, _ids(learned), figure, table)


def _needs(of: ReportData) -> Section:
    text = (
        "What every role of actors held and how much memory its largest actor needed at its peak, libraries included. "
        "Definitions are in docs/compare.md."
    )
    figure = save(cost_figures.where_it_went(of.done), of.figures, "costs")
    table = tables.needs(of.done, of.spec.price_per_device_hour)
    return Section("What each method needs", text, _ids(of.done), figure, table)


def _stages(of: ReportData) -> Section | None:
    shared = tables.stages(of.done, of.spec.price_per_device_hour)
    text = "Made once, and not in the costs of the runs above."
    return Section("Shared stages", text, _ids(of.done), None, shared) if shared.rows else None


def _robustness(of: ReportData) -> Section:
    text = f"How much the outcome depends on the settings that were tried.{of.seeds}"
    figure = save(score_figures.robustness(of.done), of.figures, "robustness")
    return Section("Robustness to settings", text, _ids(of.done), figure, tables.spread(of.done))


def _over_optimisation(of: ReportData) -> Section:
    learned = cost_figures.learners(of.done)
    text = (
        "Where the score falls again while the KL grows, or the learned reward rises and the score does not, the reward is "
        "over-optimised."
    )
    if not any(row.learned_reward for row in of.done):
        text += " No method of this comparison learned its reward, so the score is also what was maximised."
    figure = save(score_figures.over_optimisation(learned), of.figures, "over_optimisation")
    return Section("Over-optimisation", text, _ids(learned), figure)


def _lengths(of: ReportData) -> Section:
    text = f"Whether a score was bought with length.{of.seeds}"
    return Section("Length growth", text, _ids(of.done), save(score_figures.lengths(of.done), of.figures, "lengths"))


def _samples(of: ReportData) -> Section | None:
    shown = tables.samples(of.done)
    text = "The first held-out prompts, not chosen; each method at its best setting, first seed; scores in brackets."
    return Section("Samples", text, _ids(of.done), None, shown) if shown.rows else None


def _runs(of: ReportData) -> Section:
    text = "Every run and the command that makes it again."
    return Section("Runs", text, _ids(of.rows), None, tables.runs(of.rows, of.folder))


def _ids(rows: Iterable[RunRecord]) -> tuple[str, ...]:
    return tuple(row.id for row in rows)
