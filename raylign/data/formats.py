"""Parsing of rows in the forms that TRL reads, standard (text) and conversational (messages), into common examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raylign.data.columns import Message, Row, end_of, has, label_of, missing, read
from raylign.errors import DataError


@dataclass(frozen=True)
class Text:
    """An example in standard form: a completion to learn, after its prompt if there is one."""

    prompt: str | None
    completion: str
    finished: bool = True  # False: cut by length, so that no eos follows


@dataclass(frozen=True)
class Conversation:
    """An example in conversational form; assistant turns from message `num_prompt` on, to the last, are learned."""

    messages: list[Message]
    num_prompt: int
    finished: bool = True  # False: the last turn was cut by length


Example = Text | Conversation


def prompt_of(row: Row, place: str) -> str | list[Message]:
    """Return the row's `prompt`, which the policy will continue.

    Raises:
        DataError: the column is missing, empty or of another type, or its last message is the assistant's.
    """
    prompt = read(row, "prompt", place, "prompts")
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise DataError(f"{place}: prompt ends with an assistant message; end it with the message to answer")
    return prompt


def sequence_of(row: Row, place: str) -> Example:
    """Return the sequence of a row: `prompt` + `completion`, else `messages`, else `text`.

    `finished: false` marks a sequence that was cut by length.

    Raises:
        DataError: columns are missing, empty or of another type, or the last message is not the assistant's.
    """
    if has(row, "prompt") and has(row, "completion"):
        return _answer(row, place)
    end = end_of(row, "finished", place)
    if has(row, "messages"):
        messages = read(row, "messages", place)
        if isinstance(messages, str):
            raise DataError(f"{place}: messages is text; name it under data.columns: {{text: messages}}")
        return _conversation(messages, 0, end, "messages", place)
    if has(row, "text"):
        text = read(row, "text", place)
        if not isinstance(text, str):
            raise DataError(f"{place}: text is a list; if it holds messages, set data.columns: {{messages: text}}")
        return Text(None, text, end is not False)
    raise missing(row, place, "sequences")


def pair_of(row: Row, place: str) -> tuple[Example, Example]:
    """Return the chosen and the rejected example of a row.

    Their prompt is the `prompt` column, else the beginning that both share. A `prompt` that is text beside
    `chosen`/`rejected` that are whole conversations (UltraFeedback) is ignored. `chosen_finished` and
    `rejected_finished` are false where that side was cut by length.

    Raises:
        DataError: columns are missing, empty, of another type or of different forms, or the two sides share no
            beginning or are the same.
    """
    if has(row, "completion") and has(row, "label") and not (has(row, "chosen") or has(row, "rejected")):
        raise DataError(
            f"{place}: a completion with a label is not a pair; set algorithm.name: kto, which learns from such rows, "
            "or give chosen + rejected"
        )
    (chosen, chosen_end), (rejected, rejected_end) = (
        _completion(row, side, f"{side}_finished", place) for side in ("chosen", "rejected")
    )
    if type(chosen) is not type(rejected):
        raise DataError(f"{place}: one of chosen and rejected is text, the other messages; write both in one form")
    if chosen == rejected and (chosen_end is False) == (rejected_end is False):
        raise DataError(f"{place}: chosen and rejected are the same; remove the row")
    prompt = read(row, "prompt", place) if has(row, "prompt") else None
    if prompt is None or (isinstance(prompt, str) and isinstance(chosen, list)):
        prompt, chosen, rejected = _split(chosen, rejected)
        if not prompt:
            raise DataError(f"{place}: chosen and rejected share no beginning; add a prompt column")
    return (
        _example(prompt, chosen, chosen_end, "chosen", place),
        _example(prompt, rejected, rejected_end, "rejected", place),
    )


def labelled_of(row: Row, place: str) -> list[tuple[Example, bool]]:
    """Return the examples of a row, each with True if it is desirable.

    The row has `prompt` + `completion` + `label`, or both sides of a pair (as in TRL), chosen being desirable.

    Raises:
        DataError: columns are missing, empty or of another type, or a label is neither true nor false.
    """
    if has(row, "prompt") and has(row, "completion") and has(row, "label"):
        return [(_answer(row, place), label_of(row, place))]
    if has(row, "chosen") and has(row, "rejected"):
        chosen, rejected = pair_of(row, place)
        return [(chosen, True), (rejected, False)]
    raise missing(row, place, "labelled rows")


def _answer(row: Row, place: str) -> Example:
    completion, end = _completion(row, "completion", "finished", place)
    return _example(read(row, "prompt", place), completion, end, "completion", place)


def _completion(row: Row, column: str, flag: str, place: str) -> tuple[str | list[Message], bool | None]:
    """Return the completion, and whether it ended by itself (None if the row does not say).

    The completion may be blank if the row says how it ended: a policy can sample eos at once.
    """
    end = end_of(row, flag, place)
    return read(row, column, place, "pairs", blank=end is not None), end


def _split(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Split off the shared beginning: return it, the rest of chosen and the rest of rejected.

    Text is cut so that no word is split and a space stays with its word.
    """
    differing = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    size = next(differing, min(len(chosen), len(rejected)))
    if isinstance(chosen, str):
        common, rests = chosen[:size], (chosen[size:], rejected[size:])
        if common[-1:].isalnum() and any(not rest or rest[0].isalnum() for rest in rests):
            word = next((i for i in range(size, 0, -1) if common[i - 1].isspace()), 0)
            size = word or size  # scripts without spaces are cut where they differ
        if size > 1 and chosen[size - 1] == " ":
            size -= 1
    return chosen[:size], chosen[size:], rejected[size:]


def _example(prompt: Any, completion: Any, end: bool | None, column: str, place: str) -> Example:
    if type(prompt) is not type(completion):
        raise DataError(f"{place}: one of prompt and {column} is text, the other messages; write both in one form")
    if completion == [] or (completion == "" and not end):
        raise DataError(f"{place}: {column} is empty after the prompt; remove the row")
    if isinstance(prompt, str):
        return Text(prompt, completion, end is not False)
    return _conversation(prompt + completion, len(prompt), end, column, place)


def _conversation(messages: list[Message], num_prompt: int, end: bool | None, column: str, place: str) -> Conversation:
    if messages[0]["role"] == "assistant":
        raise DataError(f"{place}: the conversation begins with the assistant; put a system or user message before it")
    if messages[-1]["role"] != "assistant":
        role = messages[-1]["role"]
        raise DataError(f"{place}: {column} ends with a {role} message; remove what follows the last assistant message")
    return Conversation(messages, num_prompt, end is not False)
