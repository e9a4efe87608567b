"""Completions that were cut by length: no eos is learned where none was sampled."""

import json
from pathlib import Path
from typing import Any

import pytest

from raylign.config import DataConfig
from raylign.data import load_pairs, load_prompts, load_sequences
from raylign.data.formats import Text, pair_of, sequence_of
from raylign.errors import DataError
from tests.unit.data.test_tokenize import CHATML, assistant, parts, tokenizer, user

AT = "rows.jsonl:7"


def config(folder: Path, *rows: dict, **settings: Any) -> DataConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path), **settings)


@pytest.mark.parametrize(("finished", "completion"), [({}, "y<eos>"), ({"finished": True}, "y<eos>"), ({"finished": False}, "y"), ({"finished": None}, "y<eos>")])  # fmt: skip
def test_sequences(tmp_path, finished, completion):
    tok = tokenizer()
    for row in ({"prompt": "x", "completion": "y"}, {"text": "xy"}):
        assert parts(tok, load_sequences(config(tmp_path, row | finished), tok, 100))[1] == (completion, True)


def test_each_side_of_a_pair_on_its_own(tmp_path):
    tok = tokenizer(bos=True)
    row = {"prompt": "x", "chosen": "y", "rejected": "y", "chosen_finished": True, "rejected_finished": False}
    pairs = load_pairs(config(tmp_path, row), tok, 100)  # the same text, but not the same tokens
    assert parts(tok, pairs.chosen) == [("<bos>x", False), ("y<eos>", True)]
    assert parts(tok, pairs.rejected) == [("<bos>x", False), ("y", True)]


def test_eos_at_once_is_a_completion(tmp_path):
    tok = tokenizer()
    row = {"prompt": "x<eos>", "chosen": "", "rejected": " ", "chosen_finished": True, "rejected_finished": False}
    pairs = load_pairs(config(tmp_path, row), tok, 100)  # the eos of the prompt is not taken for the completion's
    assert parts(tok, pairs.chosen) == [("x<eos>", False), ("<eos>", True)]
    assert parts(tok, pairs.rejected) == [("x<eos>", False), (" ", True)]
    sequence = load_sequences(config(tmp_path, {"prompt": "x", "completion": "", "finished": True}), tok, 100)
    assert parts(tok, sequence) == [("x", False), ("<eos>", True)]


def test_a_tokenizer_without_eos_serves_rows_that_need_none(tmp_path):
    tok = tokenizer(eos=None)
    cut = {"prompt": "x", "chosen": "y", "rejected": "z", "chosen_finished": False, "rejected_finished": False}
    assert parts(tok, load_pairs(config(tmp_path, cut), tok, 100).chosen) == [("x", False), ("y", True)]
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: tokenizer .* has no eos token; set its eos_token, or .*finished: false"
    ):
        load_pairs(config(tmp_path, cut, cut | {"chosen_finished": True}), tok, 100)


def test_a_conversation_that_was_cut_loses_the_eos_of_its_template(tmp_path):
    row = {"prompt": [user("q")], "completion": [assistant("a")], "finished": False}
    tok = tokenizer(eos="<|im_end|>", template=CHATML)
    assert parts(tok, load_sequences(config(tmp_path, row), tok, 1000))[1] == ("a", True)
    other = tokenizer(template=CHATML)  # its template closes a turn with something else
    with pytest.raises(
        DataError, match=r"rows\.jsonl:1: the row is not finished, .*; write prompt and completion as text"
    ):
        load_sequences(config(tmp_path, row), other, 1000)


def test_a_text_that_brings_its_own_bos_gets_no_second_one(tmp_path):
    """A rendered conversation is collected as text, with the bos that its template wrote."""
    tok = tokenizer(bos=True, template="<bos>" + CHATML)
    prompt = load_prompts(config(tmp_path, {"prompt": [user("q")]}), tok, 1000)
    row = {"prompt": prompt.columns["prompt"][0], "chosen": "y", "rejected": "z"}
    pairs = load_pairs(config(tmp_path, row), tok, 1000)
    size = len(prompt.tokens[0])
    assert pairs.chosen.tokens[0][:size].tolist() == prompt.tokens[0].tolist()
    assert not pairs.chosen.completion_mask[0][:size].any()
    assert pairs.chosen.completion_mask[0][size:].all()


@pytest.mark.parametrize(
    ("read", "row", "words"),
    [
        (sequence_of, {"prompt": "x", "completion": "", "finished": False}, "completion is empty after the prompt"),
        (sequence_of, {"prompt": "x", "completion": " "}, "completion is empty"),
        (sequence_of, {"prompt": "x", "completion": "y", "finished": 1}, "finished must be true or false, not 1"),
        (sequence_of, {"text": "x", "finished": "yes"}, "finished must be true or false, not 'yes'"),
        (sequence_of, {"prompt": [user("q")], "completion": [], "finished": True}, "completion is empty"),
        (pair_of, {"prompt": "x", "chosen": "", "rejected": "y", "rejected_finished": True}, "chosen is empty"),
        (pair_of, {"prompt": "x", "chosen": "y", "rejected": "y", "chosen_finished": True}, "chosen and rejected are the same"),
    ],
)  # fmt: skip
def test_a_bad_row_is_one_line_with_its_place(read, row, words):
    with pytest.raises(DataError) as caught:
        read(row, AT)
    assert str(caught.value).startswith(f"{AT}: {words}")


def test_an_implicit_prompt_can_be_all_of_a_side():
    row = {"chosen": "Q: a? A:", "rejected": "Q: a? A: no", "chosen_finished": True}
    assert pair_of(row, AT) == (Text("Q: a? A:", ""), Text("Q: a? A:", " no"))
