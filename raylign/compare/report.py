"""The report of a comparison, from its rows alone: sections, each with its runs and the command that makes it again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raylign.compare import cost_figures, score_figures, tables
from raylign.compare.claims import Claim, claims, verdict
from raylign.compare.drawing import save
from raylign.compare.exact_rows import optimum_curve
from raylign.compare.html import page
from raylign.compare.markdown import text
from raylign.compare.rows import Row
from raylign.compare.tables import Table
from raylign.config.compare import CompareConfig

BOOTSTRAP = "Bars are 95 % percentile bootstrap intervals over seeds and prompts"


@dataclass(frozen=True)
class Section:
    """A heading, what to know, a figure and a table, the runs they are of."""

    title: str
    told: str
    runs: tuple[str, ...]
    figure: Path | None = None  # png; the svg is beside it
    table: Table | None = None


@dataclass(frozen=True)
class Report:
    title: str
    command: str
    about: str
    verdict: str
    claims: tuple[Claim, ...]
    sections: tuple[Section, ...]


def write_report(spec: CompareConfig, spec_file: Path, rows: Sequence[Row], folder: Path) -> list[Path]:
    """`report.html`, which needs no other file, `report.md` with its pictures beside it; returns what was written."""
    report = make_report(spec, spec_file, rows, folder)
    html, markdown = folder / "report.html", folder / "report.md"
    html.write_text(page(report))
    markdown.write_text(text(report, folder))
    return [html, markdown]


def make_report(spec: CompareConfig, spec_file: Path, rows: Sequence[Row], folder: Path) -> Report:
    """Draws the figures into `folder/figures`."""
    done = [row for row in rows if row.done]
    task = spec.task.name if spec.task else None
    return Report(
        title=f"{spec.name}: {', '.join(dict.fromkeys(row.label for row in rows))}",
        command=f"raylign compare {shlex.quote(os.path.relpath(spec_file))}",
        about=_about(spec, rows),
        verdict=verdict(done, task, spec.target_score),
        claims=tuple(claims(done, task, spec.target_score)),
        sections=tuple(_sections(spec, rows, done, folder)),
    )


def _sections(spec: CompareConfig, rows: Sequence[Row], done: list[Row], folder: Path) -> list[Section]:
    price, figures = spec.price_per_device_hour, folder / "figures"
    ids = tuple(row.id for row in done)
    learned = cost_figures.learners(done)
    seeds = "" if len(spec.seeds) > 1 else " There is one seed, so there are no intervals over seeds."
    optimum = optimum_curve(done)
    figure = save(score_figures.frontier(done, optimum), figures, "frontier")
    told = (
        "How much score each method gains for how far it moved from the reference. Up and to the left is better. A bar "
        "that leaves the picture goes on." + seeds
    )
    told += " KL of best-of-n is the bound log n - (n - 1) / n." if any(row.kl_is_bound for row in done) else ""
    found = [Section("Score against KL", told, ids, figure, tables.results(done))]
    found += [section for rival in ("reference", "start") if (section := _wins(spec, done, rival, figures))]
    if learned:
        drawn, goal, reached = cost_figures.cost_to_score(learned, spec.target_score)
        told = "Offline methods are judged only when they have ended, so theirs is the cost of the whole run; online methods when they were first judged at the score or above."
        told += (
            ""
            if spec.target_score is not None
            else " The score asked for is the highest that the best setting of every method reached with every seed."
        )
        if goal <= max(row.score_before for row in learned):
            told += " Here that is no higher than the start, so the costs say little."
        found.append(
            Section(
                "Cost to reach a score",
                told,
                tuple(r.id for r in learned),
                save(drawn, figures, "cost_to_score"),
                tables.to_reach(goal, reached, price),
            )
        )
    told = "What every role of actors held and how much memory its largest actor needed at its peak, libraries included. Definitions are in docs/compare.md."
    found.append(
        Section(
            "What each method needs",
            told,
            ids,
            save(cost_figures.where_it_went(done), figures, "costs"),
            tables.needs(done, price),
        )
    )
    shared = tables.stages(done, price)
    if shared.rows:
        found.append(Section("Shared stages", "Made once, and not in the costs of the runs above.", ids, None, shared))
    told = f"How much the outcome depends on the settings that were tried.{seeds}"
    found.append(
        Section(
            "Robustness to settings",
            told,
            ids,
            save(score_figures.robustness(done), figures, "robustness"),
            tables.spread(done),
        )
    )
    told = "Where the score falls again while the KL grows, or the learned reward rises and the score does not, the reward is over-optimised."
    if not any(row.learned_reward for row in done):
        told += " No method of this comparison learned its reward, so the score is also what was maximised."
    found.append(
        Section(
            "Over-optimisation",
            told,
            tuple(r.id for r in learned),
            save(score_figures.over_optimisation(learned), figures, "over_optimisation"),
        )
    )
    found.append(
        Section(
            "Length growth",
            f"Whether a score was bought with length.{seeds}",
            ids,
            save(score_figures.lengths(done), figures, "lengths"),
        )
    )
    shown = tables.samples(done)
    if shown.rows:
        found.append(
            Section(
                "Samples",
                "The first held-out prompts, not chosen; each method at its best setting, first seed; scores in brackets.",
                ids,
                None,
                shown,
            )
        )
    found.append(
        Section(
            "Runs",
            "Every run and the command that makes it again.",
            tuple(r.id for r in rows),
            None,
            tables.runs(rows, folder),
        )
    )
    return found


def _wins(spec: CompareConfig, done: list[Row], rival: Literal["start", "reference"], figures: Path) -> Section | None:
    """Against the data's reference answers, or the start; None where there is nothing to win against."""
    rates = score_figures.win_rates(done, rival)
    if not rates:
        return None
    whom = "the start's own completion" if rival == "start" else "the reference answer of the data"
    told = (
        f"Prompt by prompt against {whom}. {BOOTSTRAP}. At equal length: the logistic regression of the wins on the "
        "difference of lengths, read at no difference."
    )
    told += " With one seed they are over its prompts alone." if len(spec.seeds) < 2 else ""
    figure = save(score_figures.win_rate_figure(done, rates, rival), figures, f"win_rate_{rival}")
    ids = tuple(row.id for won in rates for row in won.group.rows)
    return Section(f"Win rate against the {rival}", told, ids, figure, tables.win_table(rates, rival))


def _about(spec: CompareConfig, rows: Sequence[Row]) -> str:
    budget = (
        f"a budget of {spec.budget.of_each:,} {spec.budget.per.replace('_', ' ')} each"
        if spec.budget
        else "no common budget"
    )
    failed = sum(not row.done for row in rows)
    return (
        f"{len(rows)} runs: the same start, reference, preferences, held-out prompts and seeds ({', '.join(map(str, spec.seeds))}) for every "
        f"method, betas {', '.join(f'{beta:g}' for beta in spec.betas)}, {budget}."
        + (f" {failed} of them failed and are left out." if failed else "")
    )
