"""Claims, verdict and report from rows whose outcome is known, and what a page may not hold."""

from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from raylign.compare.records import RunRecord, read_records, split_reference_pass_cost, write_records
from raylign.compare.report.claims import BETTER, FASTER, claims, contenders, seconds_to, verdict, win_rate
from raylign.compare.report.groups import best, methods, paired, score_on_odd_prompts
from raylign.compare.report.write import write_report
from raylign.config.compare import CompareConfig
from tests.unit.compare_rows import CHEAP, DEAR, PAIRS, SFT, made_rows, shuffled

SPEC = CompareConfig.model_validate(
    {
        "name": "made",
        "task": {"name": "sentiment"},
        "methods": [{"name": "ppo", "run": "ppo.yaml"}, {"name": "dpo", "run": "dpo.yaml"}],
        "betas": [0.1, 0.5],
        "seeds": [0, 1, 2, 3],
        "price_per_device_hour": 0.5,
    }
)


def outcome(rows: list[RunRecord], task: str = "summarize") -> dict[str, str]:
    return {claim.text: claim.verdict for claim in claims(rows, task)}


def test_both_claims_hold_where_they_should():
    assert outcome(made_rows(dpo=2.0, ppo=1.0)) == {FASTER: "supported", BETTER: "supported"}
    assert outcome(made_rows(dpo=1.0, ppo=2.5))[BETTER] == "not supported"
    assert outcome(made_rows(), task="sentiment")[BETTER] == "inconclusive"


def test_shuffled_names_say_nothing():
    """The negative control: what is concluded comes from the names' runs."""
    assert outcome(shuffled(made_rows(dpo=2.0, ppo=1.0))) == {FASTER: "inconclusive", BETTER: "inconclusive"}
    assert "inconclusive" in verdict(shuffled(made_rows()), "summarize")
    assert "scores higher than" not in verdict(shuffled(made_rows()), "summarize")


def test_many_methods_are_told_from_the_highest_down_and_each_pair_once():
    rows = made_rows(dpo=2.0, ppo=1.0)
    twin = [replace(row, method="other", label="Other", algorithm="kto") for row in rows if row.method == "dpo"]
    said = verdict([*rows, *twin], "summarize")
    above = said[said.index("DPO scores higher") : said.index("“")]
    assert [part.partition(" (by")[0] for part in above.split(". ")[:2]] == [
        "DPO scores higher than PPO",
        "Other scores higher than PPO",
    ]
    assert "Which scores higher is inconclusive: DPO or Other (+0.00 [" in above
    assert above.count("PPO") == 2


def test_one_seed_says_nothing():
    rows = made_rows(seeds=(0,))
    assert outcome(rows) == {FASTER: "inconclusive", BETTER: "inconclusive"}
    assert "With one seed there is no interval over seeds" in verdict(rows, "summarize")


def test_no_claim_without_both_methods_or_above_the_start():
    alone = [row for row in made_rows() if row.method == "dpo"]
    assert contenders(alone) is None
    assert outcome(alone) == {FASTER: "inconclusive", BETTER: "inconclusive"}
    (faster, _) = claims(made_rows(dpo=-2.0), "summarize")
    assert faster.verdict == "inconclusive"
    assert "scored above the start" in faster.why
    (faster, _) = claims(made_rows(), "summarize", target=50.0)
    assert "did not reach the score 50.00 with every seed" in faster.why


def test_equal_score_is_what_the_worse_of_both_reached_and_stages_are_told():
    (faster, _) = claims(made_rows(dpo=2.0, ppo=1.0), "summarize")
    assert f"took {CHEAP / DEAR:.2f} [" in faster.why
    assert "0.40 [0.40, 0.40] times its memory, with 2 copies of the model against 4" in faster.why
    # The pairs took 30 device-seconds, which DPO alone needs; both need the SFT run.
    assert "(0.50 [" in faster.why
    assert len(faster.runs) == 8


def test_the_setting_is_chosen_on_even_prompts_and_judged_on_odd_ones():
    rows = made_rows()
    settings = methods(rows)["dpo"]
    chosen = best(settings)
    assert chosen.setting == {"beta": 0.1}
    one = chosen.records[0]
    odd = [sample.score or 0.0 for sample in one.after[1::2]]
    assert score_on_odd_prompts(one) == pytest.approx(sum(odd) / len(odd))
    assert len(paired(one.after, one.before, odd=True)[0]) == len(one.after) // 2


def test_wins_are_paired_by_prompt_and_seed():
    dpo, ppo = (best(methods(made_rows(dpo=2.0, ppo=1.0))[name]) for name in ("dpo", "ppo"))
    rate = win_rate(dpo, ppo)  # the same spread on the same prompts: always higher
    assert (rate.value, rate.low, rate.num_seeds) == (1.0, 1.0, 4)


def test_seconds_to_a_score():
    ppo = next(row for row in made_rows() if row.method == "ppo")
    assert seconds_to(ppo, ppo.score_after / 2.5) == DEAR / 2
    assert seconds_to(ppo, ppo.score_after) == DEAR
    assert seconds_to(ppo, 99.0) is None


def test_the_reference_pass_is_shared_by_those_that_read_it():
    rows = [row for row in made_rows(seeds=(0, 1)) if row.method == "dpo"]
    first = rows[0]
    assert first.cost is not None
    rows[0] = replace(first, cost=replace(first.cost, reference_device_seconds=8.0))
    shared = split_reference_pass_cost(rows)
    for before, after in zip(rows, shared, strict=True):
        assert before.cost is not None
        assert after.cost is not None
        assert after.cost.learning_device_seconds == before.cost.learning_device_seconds + 2.0
        assert after.curve[-1].device_seconds == after.cost.learning_device_seconds


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = made_rows(seeds=(0,))
    write_records(tmp_path / "rows.json", rows)
    assert read_records(tmp_path / "rows.json") == rows
    write_records(tmp_path / "rows.json", [replace(rows[0], finished=math.nan)])
    assert '"finished": null' in (tmp_path / "rows.json").read_text()
    assert math.isnan(read_records(tmp_path / "rows.json")[0].finished)


class Page(HTMLParser):
    """What a page refers to, and the text of each of its sections."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.sections: list[str] = []
        self.figures: list[int] = []  # the section of each
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "section":
            self.sections.append("")
        if tag == "figure":
            self.figures.append(len(self.sections) - 1)

    def handle_data(self, data: str) -> None:
        if self.sections:
            self.sections[-1] += data


def outside(page: Page, text: str) -> list[str]:
    """Whatever a browser would fetch."""
    found = [link for link in page.links if not link.startswith("data:image/png;base64,")]
    found += [tag for tag in page.tags if tag in ("script", "link", "iframe", "object", "embed")]
    return found + [word for word in ("http:", "https:", "url(", "@import") if word in text]


def test_a_page_that_fetches_is_found():
    for text in (
        '<img src="https://example.org/a.png">',
        "<script>1</script>",
        '<link rel="stylesheet" href="a.css">',
        "<style>p { background: url(a.png) }</style>",
    ):
        assert outside(Page(text), text)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(SPEC, folder / "spec.yaml", made_rows(), folder)
    return folder


def test_the_page_stands_alone_and_every_figure_has_runs_and_command(written):
    text = (written / "report.html").read_text()
    page = Page(text)
    assert outside(page, text) == []
    assert len(page.figures) >= 7
    for at in page.figures:
        assert "raylign compare " in page.sections[at]
        assert "spec.yaml" in page.sections[at]
        assert "ppo-beta0.1-seed0" in page.sections[at]
        assert "dpo-beta0.5-seed3" in page.sections[at]
    assert "<b>good" not in text, "what a model wrote is text"
    assert "&lt;b&gt;good" in text
    for told in (FASTER, BETTER, SFT, PAIRS, "device-seconds", "at 0.5 per device-hour", "bootstrap", "t interval"):
        assert told in text or told in (written / "figures" / "frontier.svg").read_text(), told


def test_pictures_are_files_too_and_the_markdown_shows_them(written):
    markdown = (written / "report.md").read_text()
    pictures = sorted((written / "figures").glob("*.png"))
    assert len(pictures) >= 7
    for picture in pictures:
        assert picture.with_suffix(".svg").stat().st_size > 5_000
        assert picture.stat().st_size > 5_000
        assert f"](figures/{picture.name})" in markdown
    assert "raylign run configs/" not in markdown or "| ppo-beta0.1-seed0 |" in markdown


def test_a_report_where_nothing_rose_above_the_start(tmp_path):
    write_report(SPEC, tmp_path / "spec.yaml", made_rows(dpo=-2.0, ppo=-1.0), tmp_path)
    assert (
        "Here the target is not above the score of the start, so these costs say little"
        in (tmp_path / "report.html").read_text()
    )


def test_a_report_of_one_seed_and_a_failed_run_says_so(tmp_path):
    rows = made_rows(seeds=(0,))
    rows.append(replace(rows[0], id="ppo-beta9-seed0", error="it fell over", setting={"beta": 9.0}))
    spec = SPEC.model_copy(update={"seeds": (0,), "price_per_device_hour": None})
    write_report(spec, tmp_path / "spec.yaml", rows, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "1 of them failed and are left out" in text
    assert "it fell over" in text
    assert "There is one seed, so there are no intervals over seeds" in text
    assert "device-hour" not in text
