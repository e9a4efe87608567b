import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raylign.config import DataConfig
from raylign.data import load_pairs, load_prompts, load_sequences
from raylign.errors import DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As reasoning models do: what the assistant thought is shown in its last turn only.
FORGETFUL = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else m.content[:1] }}")
REFUSING = "{{ raise_exception('only\nuser') if messages[0].role != 'user' }}" + CHATML


def tokenizer(
    *, bos: bool = False, adds_eos: bool = False, eos: str | None = "<eos>", template: str | None = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE that has learned to merge "ab"; pad is eos."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(specials) + 257, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(["ab"] * 10, trainer)
    if bos or adds_eos:
        single = f"{'<bos> ' if bos else ''}$A{' <eos>' if adds_eos else ''}"
        used: list[Any] = [(name, core.token_to_id(name)) for name in ("<bos>", "<eos>")]
        core.post_processor = processors.TemplateProcessing(single=single, special_tokens=used)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token=eos, pad_token=eos, chat_template=template
    )


def config(folder: Path, *rows: dict, **settings: Any) -> DataConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path), **settings)


def parts(tok: PreTrainedTokenizerFast, rows, row: int = 0) -> list[tuple[str, bool]]:
    """The runs of equal mask of a row, decoded."""
    tokens, mask = rows.tokens[row], rows.completion_mask[row]
    borders = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1), len(mask)]
    return [(str(tok.decode(tokens[a:b])), bool(mask[a])) for a, b in pairwise(borders)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# --- standard form


def test_no_token_merges_across_the_border(tmp_path):
    tok = tokenizer()
    assert len(tok("ab")["input_ids"]) == 1  # it would merge
    rows = load_sequences(config(tmp_path, {"prompt": "xa", "completion": "b"}), tok, 100)
    assert rows.tokens[0].tolist() == [*tok("x")["input_ids"], *tok("a")["input_ids"], *tok("b")["input_ids"], 1]
    assert rows.completion_mask[0].tolist() == [False, False, True, True]
    prompts = load_prompts(config(tmp_path, {"prompt": "xa"}), tok, 100)
    assert prompts.tokens[0].tolist() == rows.tokens[0][:2].tolist()  # what is sampled from is what was learned after


def test_the_mask_does_not_look_at_token_ids_when_pad_is_eos(tmp_path):
    tok = tokenizer()
    assert tok.pad_token_id == tok.eos_token_id == 1
    rows = load_sequences(config(tmp_path, {"prompt": "x<eos>y", "completion": "z<eos>w"}), tok, 100)
    assert (rows.tokens[0] == 1).tolist() == [False, True, False, False, True, False, True]
    assert rows.completion_mask[0].tolist() == [False, False, False, True, True, True, True]


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_special_tokens_of_the_tokenizer(tmp_path, bos, adds_eos):
    tok = tokenizer(bos=bos, adds_eos=adds_eos)
    start = "<bos>" if bos else ""
    row = {"prompt": "x", "chosen": "y", "rejected": "z<eos>"}
    pairs = load_pairs(config(tmp_path, row), tok, 100)
    assert parts(tok, pairs.chosen) == [(f"{start}x", False), ("y<eos>", True)]
    assert parts(tok, pairs.rejected) == [(f"{start}x", False), ("z<eos>", True)]  # its own eos, not a second one
    prompts = load_prompts(config(tmp_path, row), tok, 100)
    assert tok.decode(prompts.tokens[0]) == f"{start}x"


@pytest.mark.parametrize("bos", [False, True])
def test_text_is_learned_but_for_its_first_token(tmp_path, bos):
    tok = tokenizer(bos=bos)
    rows = load_sequences(config(tmp_path, {"text": "xyz"}), tok, 100)
    expected = [("<bos>", False), ("xyz<eos>", True)] if bos else [("x", False), ("yz<eos>", True)]
    assert parts(tok, rows) == expected


characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, min_size=1, max_size=12).filter(str.strip)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.booleans())
def test_every_text_comes_back_from_its_tokens(rows, bos):
    tok = tokenizer(bos=bos)
    start = "<bos>" if bos else ""
    with tempfile.TemporaryDirectory() as folder:
        given_rows = [{"prompt": prompt, "completion": completion} for prompt, completion in rows]
        loaded = load_sequences(config(Path(folder), *given_rows), tok, 1000)
    assert loaded.tokens.offsets.tolist() == loaded.completion_mask.offsets.tolist()
    assert loaded.tokens.values.dtype == np.int32
    for i, (prompt, completion) in enumerate(rows):
        assert parts(tok, loaded, i) == [(start + prompt, False), (f"{completion}<eos>", True)]


def test_prompts_keep_the_other_columns(tmp_path):
    data = config(tmp_path, {"prompt": "x", "answer": 1}, {"prompt": "y", "level": "hard"})
    prompts = load_prompts(data, tokenizer(), 100)
    assert prompts.columns == {"prompt": ["x", "y"], "answer": [1, None], "level": [None, "hard"]}


# --- conversational form


def test_every_assistant_turn_is_learned_up_to_its_eos(tmp_path):
    tok = tokenizer(eos="<|im_end|>", template=CHATML, bos=True)
    row = {"messages": [user("q1"), assistant("a1"), user("q2"), assistant("a2")]}
    assert parts(tok, load_sequences(config(tmp_path, row), tok, 1000)) == [
        ("<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n", False),
        ("a1<|im_end|>", True),
        ("\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n", False),
        ("a2<|im_end|>", True),
    ]


def test_a_template_that_writes_no_eos_keeps_its_ending(tmp_path):
    tok = tokenizer(template=CHATML)
    rows = load_sequences(config(tmp_path, {"prompt": [user("q")], "completion": [assistant("a")]}), tok, 1000)
    assert parts(tok, rows)[1:] == [("a<|im_end|>\n", True)]


def test_conversations_learn_only_what_comes_after_the_prompt(tmp_path):
    tok = tokenizer(eos="<|im_end|>", template=CHATML)
    talk = [user("q1"), assistant("a1"), user("q2")]
    row = {"prompt": talk, "chosen": [assistant("good")], "rejected": [assistant("bad")]}
    data = config(tmp_path, row)
    pairs, prompts = load_pairs(data, tok, 1000), load_prompts(data, tok, 1000)
    [(prompt, _), chosen] = parts(tok, pairs.chosen)
    assert prompt.endswith("a1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n")
    assert chosen == ("good<|im_end|>", True)
    assert parts(tok, pairs.rejected) == [(prompt, False), ("bad<|im_end|>", True)]
    assert prompts.columns["prompt"] == [prompt]
    assert tok.decode(prompts.tokens[0]) == prompt


def test_standard_and_conversational_rows_may_be_mixed(tmp_path):
    tok = tokenizer(template=CHATML, bos=True)
    rows = [{"prompt": [user("q")], "completion": [assistant("a")]}, {"prompt": "x", "completion": "y"}]
    loaded = load_sequences(config(tmp_path, *rows), tok, 1000)
    assert parts(tok, loaded, 0)[0][0].startswith("<|im_start|>user")
    assert parts(tok, loaded, 1) == [("<bos>x", False), ("y<eos>", True)]


# --- long rows

LONG = {"prompt": "12345", "completion": "678"}  # 5 + 3 + eos
SHORT = {"prompt": "1", "completion": "2"}


@pytest.mark.parametrize(
    ("limit", "settings", "words"),
    [
        (8, {}, "prompt + completion has 9 tokens, the limit is 8; shorten it, use a model with a longer context"),
        (99, {"max_tokens": 8}, "prompt + completion has 9 tokens, the limit is 8; shorten it, raise data.max_tokens"),
        (
            99,
            {"max_prompt_tokens": 4},
            "the prompt has 5 tokens, the limit is 4; shorten it, raise data.max_prompt_tokens",
        ),
    ],
)
def test_a_long_row_is_refused_with_its_place(tmp_path, limit, settings, words):
    data = config(tmp_path, SHORT, LONG, **settings)
    with pytest.raises(DataError) as caught:
        load_sequences(data, tokenizer(), limit)
    assert str(caught.value) == f"{data.path}:2: {words}, or set data.long_rows to drop or truncate"


def test_a_row_of_exactly_the_limit_is_no_long_row(tmp_path):
    rows = load_sequences(config(tmp_path, LONG, max_prompt_tokens=5, max_tokens=9), tokenizer(), 9)
    assert rows.tokens.lengths.tolist() == [9]


def test_long_rows_are_dropped_and_counted(tmp_path, caplog):
    data = config(tmp_path, SHORT, LONG, SHORT, max_tokens=8, long_rows="drop")
    assert len(load_sequences(data, tokenizer(), 99)) == 2
    assert "of 3 rows 1 were dropped and 0 truncated: prompt + completion at most 8 tokens" in caplog.text


def test_nothing_is_logged_about_short_rows(tmp_path, caplog):
    load_sequences(config(tmp_path, SHORT, long_rows="drop"), tokenizer(), 99)
    assert caplog.text == ""


def test_long_rows_are_truncated_and_counted(tmp_path, caplog):
    tok = tokenizer(bos=True)
    data = config(tmp_path, LONG, SHORT, max_prompt_tokens=3, max_tokens=5, long_rows="truncate")
    rows = load_sequences(data, tok, 99)
    assert parts(tok, rows, 0) == [("<bos>45", False), ("67", True)]  # beginning and end are gone, eos with it
    assert parts(tok, rows, 1) == [("<bos>1", False), ("2<eos>", True)]
    assert "of 2 rows 0 were dropped and 1 truncated" in caplog.text


def test_a_long_prompt_to_sample_from_loses_its_beginning(tmp_path):
    tok = tokenizer(bos=True)
    data = config(tmp_path, {"prompt": "12345"}, long_rows="truncate", max_prompt_tokens=9)
    prompts = load_prompts(data, tok, 3)
    assert tok.decode(prompts.tokens[0]) == "<bos>45"
    assert prompts.columns["prompt"] == ["12345"]


def test_dropped_prompts_take_their_columns_along(tmp_path):
    data = config(tmp_path, {"prompt": "12345", "n": 0}, {"prompt": "1", "n": 1}, long_rows="drop")
    prompts = load_prompts(data, tokenizer(), 3)
    assert prompts.columns == {"prompt": ["1"], "n": [1]}
    assert len(prompts) == 1


def test_pairs_are_dropped_whole(tmp_path):
    long = {"prompt": "1", "chosen": "2", "rejected": "3456789"}
    short = {"prompt": "1", "chosen": "2", "rejected": "3"}
    tok = tokenizer()
    pairs = load_pairs(config(tmp_path, long, short, long_rows="drop"), tok, 5)
    assert parts(tok, pairs.rejected) == [("1", False), ("3<eos>", True)]
    assert len(pairs.chosen) == len(pairs.rejected) == 1


def test_rows_that_truncation_leaves_nothing_to_learn_from_are_dropped(tmp_path, caplog):
    same = {"prompt": "1", "chosen": "22223", "rejected": "22224"}
    no_room = {"prompt": "12345", "chosen": "2", "rejected": "3"}
    good = {"prompt": "1", "chosen": "22223", "rejected": "3"}
    pairs = load_pairs(config(tmp_path, same, no_room, good, long_rows="truncate"), tokenizer(), 5)
    assert len(pairs) == 1
    assert "of 3 rows 2 were dropped and 1 truncated" in caplog.text


def test_a_dataset_of_which_nothing_is_left_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"rows\.jsonl: all 2 rows are too long \(prompt \+ completion at most 4 tokens\)"
    ):
        load_sequences(config(tmp_path, LONG, LONG, long_rows="drop"), tokenizer(), 4)


# --- what a tokenizer cannot do

TALK = {"messages": [user("q1"), assistant("a1"), user("q2"), assistant("a2")]}


@pytest.mark.parametrize(
    ("row", "tok", "words"),
    [
        (TALK, tokenizer(), "has no chat template; set model.tokenizer"),
        (TALK, tokenizer(template=FORGETFUL), "the chat template rewrites earlier messages at message 1"),
        ({"messages": [{"role": "system", "content": "s"}, assistant("a")]}, tokenizer(template=REFUSING),
         "the chat template refuses the messages: only user; fix their roles"),
        (SHORT, tokenizer(eos=None), "has no eos token; set its eos_token"),
        ({"text": "<eos>"}, tokenizer(), "a single token"),
        ({"prompt": "x"}, tokenizer(), "sequences need text, or messages, or prompt + completion"),
    ],
)  # fmt: skip
def test_a_row_the_tokenizer_cannot_take_is_one_line_with_its_place(tmp_path, row, tok, words):
    data = config(tmp_path, row)
    with pytest.raises(DataError) as caught:
        load_sequences(data, tok, 1000)
    message = str(caught.value)
    assert message.startswith(f"{data.path}:1: ")
    assert words in message
    assert "\n" not in message


def test_a_text_without_tokens_is_refused(tmp_path):
    small = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))  # leaves out what it does not know
    tok = PreTrainedTokenizerFast(tokenizer_object=small, eos_token="<eos>")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the tokenizer makes no tokens from 'xyz'"):
        load_prompts(config(tmp_path, {"prompt": "xyz"}), tok, 10)
