"""The embedded summarize task: its truth and what cannot cheat it, its posts and summaries, and the model it hands out."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylign.config import DataConfig, SummarizeTask
from raylign.data import load_prompts
from raylign.errors import ConfigError
from raylign.tasks import TaskFiles, prepare, score_function
from raylign.tasks.posts import DAY, DID, PLACE, WEIGHT, WHAT, WHO, post_words, read_sentences, vocabulary, write_post
from raylign.tasks.summarize import DEAREST_LENGTH, LARGEST_SCORE, num_positions, quality, write_summary
from tests.unit.task_checks import check_same_bytes

TASK = SummarizeTask(name="summarize", num_posts=200, num_prompts=50, num_eval_prompts=20)
POST = "crucially anna sold boats in rome on monday . anyway omar drew maps . also liam hid coins . tl;dr :"
"""Weights 3, 0 and 1."""
LONGEST = "crucially anna sold boats in rome on monday . "


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> TaskFiles:
    return prepare(TASK, tmp_path_factory.mktemp("task") / "summarize")


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("summary", "coverage", "faithfulness", "num_words"),
    [
        ("", 0, 1, 0),
        ("anna sold boats .", 3 / 4, 1, 4),
        ("liam hid coins .", 1 / 4, 1, 4),
        ("omar drew maps .", 0, 1, 4),  # true, and does not matter
        ("anna sold boats . liam hid coins .", 1, 1, 8),
        ("liam hid coins . anna sold boats .", 1, 1, 8),  # in any order
        ("anna sold boats in rome on monday .", 3 / 4, 1, 8),  # details cost words and cover no more
        ("anna sold boats on monday .", 3 / 4, 1, 6),
        ("crucially anna sold boats .", 3 / 4, 1, 5),  # nor does a marker
        ("anna sold boats in oslo .", 0, 0, 6),  # a detail changed
        ("liam hid coins in oslo .", 0, 0, 6),  # or invented
        ("anna sold boats . liam hid maps .", 3 / 4, 1 / 2, 8),  # two facts mixed
        ("anna sold coins . liam hid boats .", 0, 0, 8),
        ("anna sold boats . anna sold boats .", 3 / 4, 1, 8),  # said twice is said once
        ("liam hid maps . liam hid maps . anna sold boats .", 3 / 4, 1 / 3, 12),  # a false sentence counts every time
        ("anna sold boats . anna sold boats . liam hid maps .", 3 / 4, 1 / 2, 12),  # and repeats do not thin it out
        ("anna sold boats", 0, 0, 3),  # a fragment without its end
        ("anna sold boats . liam hid", 3 / 4, 1 / 2, 6),
        ("anna sold boats liam hid coins .", 0, 0, 7),  # no sentence
        ("sold boats . anna .", 0, 0, 5),
        ("anna sold boats on monday in rome .", 0, 0, 8),  # not in this order
        ("anna sold boats . . .", 3 / 4, 1 / 3, 6),  # empty sentences are fragments
        ("tl;dr : anna sold boats .", 0, 0, 6),
        ("anna sold boats.liam hid coins.", 1, 1, 8),  # a full stop is a word wherever it stands
        ("zeppelin", 0, 0, 1),
    ],
)
def test_quality_by_hand(summary, coverage, faithfulness, num_words):
    assert quality(summary, POST) == pytest.approx(5 * (coverage * faithfulness - num_words / 50), abs=1e-12)


def test_the_score_is_bounded_however_long_the_summary():
    assert quality("boats " * 49, POST) == pytest.approx(-4.9)
    assert quality("boats " * DEAREST_LENGTH, POST) == quality("boats " * 1000, POST) == -LARGEST_SCORE
    whole = "anna sold boats . liam hid coins . "
    assert quality(whole * 1000, POST) == 0.0  # all is covered, and no length costs more
    assert quality(whole * 1000 + "liam hid boats . ", POST) < 0.0


def test_a_prompt_without_facts_has_no_summary():
    assert quality("anna sold boats .", "hello") == pytest.approx(-0.4)
    assert quality("", "anyway omar drew maps . tl;dr :") == 0.0
    assert quality("omar drew maps .", "anyway omar drew maps . tl;dr :") == pytest.approx(-0.4)


def test_score_has_the_shape_of_a_reward_function():
    completions = ["anna sold boats .", "", "anna sold coins ."]
    scores = score_function(TASK)([POST] * 3, completions, reference=["a", "b", "c"])
    assert scores == [quality(completion, POST) for completion in completions] == pytest.approx([3.35, 0.0, -0.4])


def best_score(post) -> float:
    """Of all sets of true sentences without details."""
    texts = [" ".join(sentence.fact.words(place=False, day=False)) for sentence in post]
    prompt = " ".join(post_words(post))
    sets = (subset for num in range(len(texts) + 1) for subset in combinations(texts, num))
    return max(quality(" ".join(subset), prompt) for subset in sets)


def test_nothing_scores_higher_than_a_right_summary():
    """The facts that matter, without details, are the best of 20,000 other texts: words of the post, its sentences cut,
    mixed, repeated and joined, and the best summaries with some words changed."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        post = write_post(rng, 4)
        prompt, words = " ".join(post_words(post)), post_words(post)
        best = best_score(post)
        parts = [s.fact.words(place=bool(rng.integers(2)), day=bool(rng.integers(2))) for s in post]
        for _ in range(500):
            picked = [parts[i] for i in rng.integers(4, size=rng.integers(1, 7))]
            text = [word for part in picked for word in part[rng.integers(2) * rng.integers(3) :]]
            for _ in range(rng.integers(3)):
                place = int(rng.integers(len(text)))
                text[place : place + int(rng.integers(2))] = [words[rng.integers(len(words))]]
            assert quality(" ".join(text), prompt) <= best + 1e-9, (prompt, text)


def test_words_have_one_meaning_and_are_used():
    counts = Counter([*WEIGHT, *WHO, *DID, *WHAT, *PLACE, *DAY])
    assert set(counts.values()) == {1}
    rng = np.random.default_rng(1)
    used = {word for _ in range(1000) for word in post_words(write_post(rng, 4))}
    assert used == set(vocabulary())


def test_posts_are_read_back_as_they_were_written():
    rng = np.random.default_rng(2)
    for num_facts in (2, 4, 8):
        for _ in range(100):
            post = write_post(rng, num_facts)
            assert read_sentences(" ".join(post_words(post))) == post
            assert len(post) == len({s.fact.who for s in post}) == len({s.fact.what for s in post}) == num_facts
            assert max(s.weight for s in post) == 3


def test_summaries_leave_room_for_better_ones_and_care_makes_them_better():
    rng = np.random.default_rng(3)
    posts = [write_post(rng, 4) for _ in range(1000)]
    prompts = [" ".join(post_words(post)) for post in posts]

    def mean_quality(care: float) -> float:
        return float(
            np.mean(
                [quality(" ".join(write_summary(rng, post, care)), p) for post, p in zip(posts, prompts, strict=True)]
            )
        )

    careless, careful = mean_quality(0.0), mean_quality(1.0)
    best = float(np.mean([best_score(post) for post in posts]))
    assert 0.5 < careless < 1.5
    assert 2.8 < careful < 3.3
    assert 3.5 < best < 4.0


def test_files_hold_what_was_asked_for(files):
    corpus, prompts, held_out = (rows(files.resolve(name)) for name in ("corpus", "prompts", "eval_prompts"))
    assert [len(corpus), len(prompts), len(held_out)] == [200, 50, 20]
    assert all(row["completion"].startswith(" ") and row["completion"].endswith(" .") for row in corpus)
    assert all(row["prompt"].endswith(" . tl;dr :") for row in corpus + prompts + held_out)
    unseen = {row["prompt"] for row in held_out}
    assert len(unseen) == 20
    assert unseen.isdisjoint(row["prompt"] for row in corpus + prompts)
    # A reference makes no mistake.
    assert all(quality(row["reference"], row["prompt"]) > -0.1 * len(row["reference"].split()) for row in held_out)


def test_references_reach_whoever_scores(files):
    tokenizer = AutoTokenizer.from_pretrained(files.resolve("model"))
    prompts = load_prompts(DataConfig(path=str(files.resolve("eval_prompts"))), tokenizer, 60)
    assert prompts.columns["reference"] == [row["reference"] for row in rows(files.resolve("eval_prompts"))]


def test_model_and_tokenizer_load_and_round_trip(files):
    tokenizer = AutoTokenizer.from_pretrained(files.resolve("model"))
    model = AutoModelForCausalLM.from_pretrained(files.resolve("model"))
    assert model.dtype == torch.float32
    assert model.config.eos_token_id == tokenizer.eos_token_id
    for row in rows(files.resolve("corpus")):
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        assert ids == tokenizer(row["prompt"])["input_ids"] + tokenizer(row["completion"])["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == row["prompt"] + row["completion"]
        assert len(ids) < model.config.max_position_embeddings
    assert tokenizer("zeppelin")["input_ids"] == [tokenizer.unk_token_id]
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, len(tokenizer))


@pytest.mark.parametrize("num_facts", [2, 8])
def test_the_longest_post_and_all_that_it_says_fit_the_context(num_facts):
    task = TASK.model_copy(update={"num_facts": num_facts})
    longest = num_facts * LONGEST.count(" ") + 2  # tl;dr :
    everything = num_facts * (LONGEST.count(" ") - 1)  # without markers
    assert longest + everything < num_positions(task)


def test_the_same_task_makes_the_same_bytes_and_another_seed_others(files, tmp_path):
    check_same_bytes(TASK, files, tmp_path)


def test_a_task_that_cannot_be_built_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"^task\.hidden_size: 40 is not a multiple of 32"):
        prepare(TASK.model_copy(update={"hidden_size": 40}), tmp_path / "task")
    assert list(tmp_path.iterdir()) == []
