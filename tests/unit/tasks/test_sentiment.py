"""The embedded sentiment task: its truth, its data, and the model it hands out."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylign.config import SentimentTask
from raylign.errors import ConfigError, UserError
from raylign.tasks import TaskFiles, prepare, score_function
from raylign.tasks.reviews import INTENSIFIERS, NEGATIONS, VALENCE, vocabulary, write_review
from raylign.tasks.sentiment import LARGEST_SCORE, SCALE, sentiment
from tests.unit.task_checks import check_same_bytes

TASK = SentimentTask(
    name="sentiment", num_reviews=200, num_prompts=50, num_eval_prompts=20, hidden_size=32, num_layers=1
)


def valence(text: str, prompt: str = "") -> float:
    """What `sentiment` summed before it squashed it."""
    return SCALE * math.atanh(sentiment(text, prompt) / LARGEST_SCORE)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> TaskFiles:
    return prepare(TASK, tmp_path_factory.mktemp("task") / "sentiment")


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("", "the film is superb and", 0.0),
        ("the", "", 0.0),
        ("a superb film .", "", 2.0),
        ("the plot is dull .", "", -1.0),
        ("the plot is not dull .", "", 0.75),
        ("the plot is very dull .", "", -1.5),
        ("not very good", "", -1.125),
        ("not strange , but good", "", 1.0),  # a negation does not leave its clause
        ("not good and witty", "", 0.25),  # and reaches one word only: -0.75 + 1
        ("good good good good", "", 1.0),  # praise repeated is not more praise
        ("good .", "the plot is not", -0.75),  # the prompt's negation reaches into the completion
        ("good .", "the plot is not good ,", 0.0),  # its words have been said
        ("and superb , and dull .", "a good film", 1.0),
    ],
)
def test_sentiment_by_hand(text, prompt, expected):
    assert valence(text, prompt) == pytest.approx(expected, abs=1e-9)


def test_score_saturates_and_follows_the_sentiment():
    everything = " , ".join(word for word, value in VALENCE.items() if value > 0)
    assert 2.9 < sentiment(everything) <= LARGEST_SCORE
    prompts, completions = ["the film is"] * 3, ["superb .", "", "awful ."]
    scores = score_function(TASK)(prompts, completions, anything=[1, 2, 3])
    assert scores == [sentiment("superb ."), 0.0, -sentiment("superb .")]


def test_words_have_one_meaning_and_are_used():
    assert not VALENCE.keys() & (INTENSIFIERS.keys() | NEGATIONS)
    rng = np.random.default_rng(1)
    used = {word for _ in range(5000) for word in write_review(rng)}
    assert used == set(vocabulary())


def test_reviews_are_varied_neutral_on_average_and_informative():
    rng = np.random.default_rng(2)
    reviews = [write_review(rng) for _ in range(2000)]
    scores = np.array([sentiment(" ".join(review)) for review in reviews])
    assert all(14 <= len(review) <= 30 for review in reviews)
    assert abs(scores.mean()) < 0.15
    assert 1.0 < scores.std() < 1.8
    # A Bradley-Terry label of two reviews agrees with the truth this often.
    agreement = 1 / (1 + np.exp(-np.abs(scores[::2] - scores[1::2])))
    assert 0.75 < agreement.mean() < 0.85


def test_files_hold_what_was_asked_for(files):
    corpus, prompts, held_out = (rows(files.resolve(name)) for name in ("corpus", "prompts", "eval_prompts"))
    assert [len(corpus), len(prompts), len(held_out)] == [200, 50, 20]
    assert all(3 <= len(row["prompt"].split()) <= 6 for row in corpus + prompts + held_out)
    assert all(row["completion"].startswith(" ") and row["completion"].endswith(" .") for row in corpus)
    unseen = {row["prompt"] for row in held_out}
    assert len(unseen) == 20
    assert unseen.isdisjoint(row["prompt"] for row in corpus + prompts)


def test_model_and_tokenizer_load_and_round_trip(files):
    tokenizer = AutoTokenizer.from_pretrained(files.resolve("model"))
    model = AutoModelForCausalLM.from_pretrained(files.resolve("model"))
    assert model.dtype == torch.float32
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    for row in rows(files.resolve("corpus")):
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        assert ids == tokenizer(row["prompt"])["input_ids"] + tokenizer(row["completion"])["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == row["prompt"] + row["completion"]
    assert tokenizer("zeppelin")["input_ids"] == [tokenizer.unk_token_id]
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, len(tokenizer))


def test_the_same_task_makes_the_same_bytes_and_another_seed_others(files, tmp_path):
    check_same_bytes(TASK, files, tmp_path)


def test_prepare_twice_keeps_what_is_there_and_leaves_nothing_else(tmp_path):
    first = prepare(TASK, tmp_path / "task")
    stamp = first.resolve("corpus").stat().st_mtime_ns
    assert prepare(TASK, tmp_path / "task") == first
    assert first.resolve("corpus").stat().st_mtime_ns == stamp
    assert [entry.name for entry in tmp_path.iterdir()] == ["task"]


def test_a_task_that_cannot_be_built_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"^task\.num_eval_prompts: no prompts are left for training after \d+"):
        prepare(TASK.model_copy(update={"num_eval_prompts": 30_000}), tmp_path / "task")
    with pytest.raises(ConfigError, match=r"^task\.hidden_size: 40 is not a multiple of 32"):
        prepare(TASK.model_copy(update={"hidden_size": 40}), tmp_path / "task")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and not a prepared task"):
        prepare(TASK, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_name_lists_the_known_ones(files):
    with pytest.raises(ConfigError, match=r"^task:valid: .*task:corpus, task:prompts, task:eval_prompts, task:model$"):
        files.resolve("valid")


def test_importing_the_task_imports_nothing_heavy():
    code = "import sys, raylign.tasks; print(sorted({'torch', 'transformers', 'ray'} & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert found.stdout.strip() == "[]"
