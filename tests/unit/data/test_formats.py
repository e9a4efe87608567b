import pytest

from raylign.data.formats import Conversation, Text, pair_of, prompt_of, sequence_of
from raylign.errors import DataError

SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "Go away."}
AT = "rows.jsonl:7"


@pytest.mark.parametrize("prompt", ["Hi", [USER], [SYSTEM, USER], [USER, GOOD, USER]])
def test_prompts(prompt):
    assert prompt_of({"prompt": prompt, "answer": 4}, AT) == prompt


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "all of it"}, Text(None, "all of it")),
        ({"prompt": "2 + 2 =", "completion": " 4"}, Text("2 + 2 =", " 4")),
        ({"prompt": "2 + 2 =", "completion": " 4", "text": None}, Text("2 + 2 =", " 4")),
        ({"prompt": [USER], "completion": [GOOD]}, Conversation([USER, GOOD], 1)),
        ({"messages": [USER, GOOD, USER, BAD]}, Conversation([USER, GOOD, USER, BAD], 0)),
        ({"prompt": "the id of the row", "messages": [USER, GOOD]}, Conversation([USER, GOOD], 0)),
    ],
)
def test_sequences(row, expected):
    assert sequence_of(row, AT) == expected


@pytest.mark.parametrize(
    ("chosen", "rejected", "split"),
    [
        ("Q: a? A: yes", "Q: a? A: no", ("Q: a? A:", " yes", " no")),  # the space goes with the word, as in TRL
        ("A:\nyes", "A:\nno", ("A:\n", "yes", "no")),
        ("A: I know", "A: I think", ("A: I", " know", " think")),
        ("A: They", "A: The end", ("A:", " They", " The end")),  # a word is not split
        ("A: yes", "A: yes sir", ("A:", " yes", " yes sir")),  # one is the beginning of the other
        ("你好吗", "你好吧", ("你好", "吗", "吧")),
    ],
)
def test_an_implicit_prompt_of_text(chosen, rejected, split):
    prompt, good, bad = split
    assert prompt + good == chosen
    assert prompt + bad == rejected
    assert pair_of({"chosen": chosen, "rejected": rejected}, AT) == (Text(prompt, good), Text(prompt, bad))


def test_an_explicit_prompt_of_text():
    row = {"prompt": "a b", "chosen": " c d", "rejected": " c e"}
    assert pair_of(row, AT) == (Text("a b", " c d"), Text("a b", " c e"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # UltraFeedback
    ],
)
def test_pairs_of_conversations(row):
    assert pair_of(row, AT) == (Conversation([USER, GOOD], 1), Conversation([USER, BAD], 1))


def test_the_shared_turns_of_long_conversations_are_the_prompt():
    chosen, rejected = pair_of({"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, AT)
    assert isinstance(chosen, Conversation)
    assert isinstance(rejected, Conversation)
    assert chosen.num_prompt == rejected.num_prompt == 3


def test_the_nulls_that_arrow_adds_to_messages_are_taken_out():
    filled = [USER | {"tool_calls": None}]
    assert prompt_of({"prompt": filled}, AT) == [USER]


def test_a_tool_call_needs_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    tool = {"role": "tool", "content": "4"}
    assert len(prompt_of({"prompt": [USER, call, tool]}, AT)) == 3


@pytest.mark.parametrize(
    ("read", "row", "words"),
    [
        (prompt_of, {"promt": "x"}, "no column 'prompt' (found: promt); prompts need prompt (text or messages); did you "
         "mean promt? Set data.columns: {prompt: promt}"),
        (prompt_of, {"zzz": "x"}, "name your column under data.columns, e.g. {prompt: YOUR_COLUMN}"),
        (prompt_of, {}, "(found: nothing)"),
        (prompt_of, {"prompt": None}, "prompt is null"),
        (prompt_of, {"prompt": 3}, "prompt must be text or a list of messages, not int"),
        (prompt_of, {"prompt": "  "}, "prompt is empty"),
        (prompt_of, {"prompt": []}, "prompt is empty"),
        (prompt_of, {"prompt": ["Hi"]}, "prompt[0] is not a message (found: str); it needs role and content"),
        (prompt_of, {"prompt": [{"from": "human", "value": "Hi"}]}, "prompt[0] is not a message (found: from, value)"),
        (prompt_of, {"prompt": [{"role": "user"}]}, "prompt[0].content must be text, not NoneType"),
        (prompt_of, {"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "prompt[0].content must be text, not list"),
        (prompt_of, {"prompt": [USER, GOOD]}, "prompt ends with an assistant message"),
        (sequence_of, {"prompt": "x", "completions": "y"}, "sequences need text, or messages, or prompt + completion; did "
         "you mean completions? Set data.columns: {completion: completions}"),
        (sequence_of, {"prompt": "x", "completion": ""}, "completion is empty"),
        (sequence_of, {"prompt": "x", "completion": [GOOD]}, "one of prompt and completion is text"),
        (sequence_of, {"prompt": [USER], "completion": "y"}, "one of prompt and completion is text"),
        (sequence_of, {"text": [USER, GOOD]}, "text is a list; if it holds messages, set data.columns: {messages: text}"),
        (sequence_of, {"messages": "x"}, "messages is text; name it under data.columns: {text: messages}"),
        (sequence_of, {"messages": [USER]}, "messages ends with a user message"),
        (sequence_of, {"messages": [GOOD, USER, GOOD]}, "begins with the assistant"),
        (sequence_of, {"messages": [USER, GOOD | {"content": " "}]}, "messages[1].content is empty"),
        (pair_of, {"chosen": "x", "rejects": "y"}, "no column 'rejected' (found: chosen, rejects)"),
        (pair_of, {"chosen": "x y", "rejected": "x y"}, "chosen and rejected are the same"),
        (pair_of, {"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "chosen and rejected are the same"),
        (pair_of, {"chosen": "x", "rejected": [USER, GOOD]}, "one of chosen and rejected is text"),
        (pair_of, {"chosen": "x", "rejected": "y"}, "chosen and rejected share no beginning; add a prompt column"),
        (pair_of, {"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]}, "share no beginning"),
        (pair_of, {"chosen": [USER, GOOD], "rejected": [USER]}, "rejected is empty after the prompt"),
        (pair_of, {"prompt": "x", "chosen": "y", "rejected": ""}, "rejected is empty"),
        (pair_of, {"prompt": "", "chosen": "y", "rejected": "z"}, "prompt is empty"),
        (pair_of, {"prompt": [USER], "chosen": "y", "rejected": "z"}, "one of prompt and chosen is text"),
        (pair_of, {"prompt": [USER], "chosen": [GOOD], "rejected": [USER]}, "rejected ends with a user message"),
    ],
)  # fmt: skip
def test_a_bad_row_is_one_line_with_its_place(read, row, words):
    with pytest.raises(DataError) as caught:
        read(row, AT)
    message = str(caught.value)
    assert message.startswith(f"{AT}: ")
    assert words in message
    assert "\n" not in message
    assert ";" in message  # what to do about it
