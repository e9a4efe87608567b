"""Completions with labels: what is read, what is refused, and whose completion stands behind whose prompt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylign.config import DataConfig
from raylign.data import load_labelled, load_pairs
from raylign.data.formats import Conversation, Text, labelled_of, pair_of
from raylign.errors import DataError
from raylign.types import LabelledSet, SequenceSet
from tests.unit.tiny import EOS, tiny_tokenizer

AT = "rows.jsonl:7"
USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}


def config(folder: Path, *rows: dict, **settings: Any) -> DataConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path), **settings)


def row(prompt: str, completion: str, label: Any, **columns: Any) -> dict:
    return {"prompt": prompt, "completion": completion, "label": label, **columns}


def texts(side: SequenceSet) -> list[str]:
    """Each row, with a bar where learning begins."""
    out = []
    for i in range(len(side)):
        words, first = (
            [f"w{t}" if t != EOS else "<eos>" for t in side.tokens[i]],
            int(np.argmax(side.completion_mask[i])),
        )
        assert side.completion_mask[i].tolist() == [t >= first for t in range(len(words))]
        out.append(" ".join(words[:first]) + " | " + " ".join(words[first:]))
    return out


def load(folder: Path, *rows: dict, max_tokens: int = 100, **settings: Any) -> LabelledSet:
    return load_labelled(config(folder, *rows, **settings), tiny_tokenizer(), max_tokens)


# --- rows


@pytest.mark.parametrize(("label", "desirable"), [(True, True), (False, False), (1, True), (0, False), (0.0, False)])
def test_labels(label, desirable):
    assert labelled_of(row("q", "a", label), AT) == [(Text("q", "a"), desirable)]


def test_conversations_with_a_label():
    assert labelled_of({"prompt": [USER], "completion": [GOOD], "label": True}, AT) == [
        (Conversation([USER, GOOD], 1), True)
    ]


def test_a_pair_is_a_good_and_a_bad_row():
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "rejected_finished": False}
    assert labelled_of(pair, AT) == [(Text("q", "a"), True), (Text("q", "b", finished=False), False)]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row("q", "a", None), "labelled rows need prompt + completion + label"),
        ({"prompt": "q", "completion": "a", "labels": True}, "Set data.columns: {label: labels}"),
        (row("q", "a", "true"), "label must be true or false (or 1 or 0), not 'true'; fix the row"),
        (row("q", "a", 0.5), "label must be true or false"),
        (row("q", "", True), "completion is empty"),
        (row("q", "a", True, finished="no"), "finished must be true or false, not 'no'"),
        ({"chosen": "x"}, "labelled rows need"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(bad, words):
    with pytest.raises(DataError) as caught:
        labelled_of(bad, AT)
    message = str(caught.value)
    assert message.startswith(f"{AT}: ")
    assert words in message
    assert ";" in message
    assert "\n" not in message


def test_a_labelled_row_is_not_a_pair(tmp_path):
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: .* not a pair; set algorithm\.name: kto, .*"):
        pair_of(row("q", "a", True), AT)
    data = config(tmp_path, row("w2", "w3", True))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*algorithm\.name: kto"):
        load_pairs(data, tiny_tokenizer(), 100)


# --- datasets


def test_each_prompt_gets_the_next_completion(tmp_path):
    data = load(tmp_path, row("w2", "w3 w4", True), row("w5 w6", "w7", False), row("w8", "w9", True, finished=False))
    assert texts(data.sequences) == ["w2 | w3 w4 <eos>", "w5 w6 | w7 <eos>", "w8 | w9"]
    assert data.desirable.tolist() == [True, False, True]
    assert texts(data.mismatched) == ["w2 | w7 <eos>", "w5 w6 | w9", "w8 | w3 w4 <eos>"]
    assert len(data) == 3
    assert data.sides == (data.sequences, data.mismatched)


def test_rows_of_the_same_prompt_are_passed_over(tmp_path):
    data = load(tmp_path, row("w2", "w3", 1), row("w2", "w4", 0), row("w5", "w6", 1), row("w2", "w7", 0))
    assert texts(data.mismatched) == ["w2 | w6 <eos>", "w2 | w6 <eos>", "w5 | w7 <eos>", "w2 | w6 <eos>"]


def test_one_prompt_for_all_takes_the_next_completion(tmp_path):
    data = load(tmp_path, row("w2", "w3", 1), row("w2", "w4", 0), row("w2", "w5", 1))
    assert texts(data.mismatched) == ["w2 | w4 <eos>", "w2 | w5 <eos>", "w2 | w3 <eos>"]


def test_pairs_are_taken_apart(tmp_path):
    pairs = [{"prompt": f"w{p}", "chosen": f"w{p + 1}", "rejected": f"w{p + 2}"} for p in (10, 20)]
    data = load(tmp_path, *pairs)
    assert texts(data.sequences) == ["w10 | w11 <eos>", "w20 | w21 <eos>", "w10 | w12 <eos>", "w20 | w22 <eos>"]
    assert data.desirable.tolist() == [True, True, False, False]
    assert texts(data.mismatched) == ["w10 | w21 <eos>", "w20 | w12 <eos>", "w10 | w22 <eos>", "w20 | w11 <eos>"]


def test_a_mismatched_row_too_long_for_the_context_is_cut(tmp_path):
    data = load(tmp_path, row("w2 w3 w4 w5", "w6", True), row("w7", "w8 w9 w10 w11", False), max_tokens=6)
    assert texts(data.mismatched) == ["w2 w3 w4 w5 | w8 w9", "w7 | w6 <eos>"]


def test_long_rows_are_dropped_with_their_labels(tmp_path):
    rows = row("w2", "w3 w4 w5 w6", True), row("w2", "w3", False), row("w5", "w6", True)
    data = load(tmp_path, *rows, max_tokens=4, long_rows="drop")
    assert data.desirable.tolist() == [False, True]
    assert texts(data.mismatched) == ["w2 | w6 <eos>", "w5 | w3 <eos>"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 1, 1], r"rows\.jsonl: 3 rows are labelled good and 0 bad, .*; add bad rows, .* algorithm\.name: sft"),
        ([0, 0], r"rows\.jsonl: 0 rows are labelled good and 2 bad, .*; add good rows"),
    ],
)
def test_one_label_only_is_refused(tmp_path, labels, words):
    with pytest.raises(DataError, match=words):
        load(tmp_path, *(row(f"w{i + 2}", "w9", label) for i, label in enumerate(labels)))


# --- margins


def test_margins_are_read_when_asked_for(tmp_path, caplog):
    pairs = [
        {"prompt": "w2", "chosen": "w3", "rejected": r, "margin": m}
        for r, m in (("w4", 1), ("w5 w6 w7", 0.5), ("w8", 2.5))
    ]
    data = config(tmp_path, *pairs, long_rows="drop")
    loaded = load_pairs(data, tiny_tokenizer(), 4, margin=True)
    assert loaded.margin is not None
    assert loaded.margin.dtype == np.float32
    assert loaded.margin.tolist() == [1.0, 2.5]  # that of the dropped pair is gone with it
    assert load_pairs(data, tiny_tokenizer(), 4).margin is None


@pytest.mark.parametrize(
    ("margin", "words"),
    [
        ({}, r"rows\.jsonl:2: no margin \(found: prompt, chosen, rejected\); .*algorithm\.margin: false"),
        ({"margin": None}, r"rows\.jsonl:2: no margin"),
        ({"margin": "2"}, r"rows\.jsonl:2: margin must be a number, not '2'; fix the row"),
        ({"margin": True}, r"margin must be a number, not True"),
        ({"margin": float("nan")}, r"margin must be a number, not nan"),
    ],
)
def test_a_missing_or_malformed_margin_is_refused(tmp_path, margin, words):
    pair = {"prompt": "w2", "chosen": "w3", "rejected": "w4"}
    with pytest.raises(DataError, match=words):
        load_pairs(config(tmp_path, pair | {"margin": 1}, pair | margin), tiny_tokenizer(), 100, margin=True)
