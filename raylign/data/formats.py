"""What a row means: the standard (text) and conversational (messages) forms that TRL reads, checked and made alike."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from raylign.errors import DataError

Row = dict[str, Any]
Message = dict[str, Any]  # role, content, and whatever else the chat template reads

_NEEDS = {
    "prompts": ("prompt (text or messages)", ("prompt",)),
    "sequences": ("text, or messages, or prompt + completion", ("text", "messages", "prompt", "completion")),
    "pairs": ("chosen + rejected (and prompt, unless both begin with it)", ("chosen", "rejected", "prompt")),
}


@dataclass(frozen=True)
class Text:
    """Standard form. The completion is learned; without a prompt the whole text is."""

    prompt: str | None
    completion: str


@dataclass(frozen=True)
class Conversation:
    """Conversational form. Every assistant turn from message `num_prompt` on is learned, the last message among them."""

    messages: list[Message]
    num_prompt: int


Example = Text | Conversation


def prompt_of(row: Row, place: str) -> str | list[Message]:
    """`prompt`, which the policy is to continue.

    Raises:
        DataError: column missing, empty, of a wrong type, or a conversation in which it is the user's turn.
    """
    prompt = _read(row, "prompt", place, "prompts")
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise DataError(f"{place}: prompt ends with an assistant message; end it with the turn to be answered")
    return prompt


def sequence_of(row: Row, place: str) -> Example:
    """`prompt` + `completion`, else `messages`, else `text`.

    Raises:
        DataError: columns missing, empty or of a wrong type, or a conversation without an assistant's last word.
    """
    if _has(row, "prompt") and _has(row, "completion"):
        return _example(_read(row, "prompt", place), _read(row, "completion", place), "completion", place)
    if _has(row, "messages"):
        messages = _read(row, "messages", place)
        if isinstance(messages, str):
            raise DataError(f"{place}: messages is text; name it under data.columns: {{text: messages}}")
        return _conversation(messages, 0, "messages", place)
    if _has(row, "text"):
        text = _read(row, "text", place)
        if not isinstance(text, str):
            raise DataError(f"{place}: text is a list; if it holds messages, set data.columns: {{messages: text}}")
        return Text(None, text)
    raise _missing(row, place, "sequences")


def pair_of(row: Row, place: str) -> tuple[Example, Example]:
    """(chosen, rejected) of one prompt: the `prompt` column, else the beginning that both share.

    `prompt` as text beside `chosen`/`rejected` as whole conversations (UltraFeedback) counts as no prompt.

    Raises:
        DataError: columns missing, empty, of a wrong type or of different forms; nothing shared; both the same.
    """
    chosen, rejected = (_read(row, name, place, "pairs") for name in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise DataError(f"{place}: one of chosen and rejected is text, the other messages; write both in one form")
    if chosen == rejected:
        raise DataError(f"{place}: chosen and rejected are the same; remove the row")
    prompt = _read(row, "prompt", place) if _has(row, "prompt") else None
    if prompt is None or (isinstance(prompt, str) and isinstance(chosen, list)):
        prompt, chosen, rejected = _split(chosen, rejected)
        if not prompt:
            raise DataError(f"{place}: chosen and rejected share no beginning; add a prompt column")
    return _example(prompt, chosen, "chosen", place), _example(prompt, rejected, "rejected", place)


def _split(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """The shared beginning and the two rests. Text is cut so that no word is split and a space stays with its word."""
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


def _example(prompt: Any, completion: Any, column: str, place: str) -> Example:
    if type(prompt) is not type(completion):
        raise DataError(f"{place}: one of prompt and {column} is text, the other messages; write both in one form")
    if not completion:
        raise DataError(f"{place}: {column} is empty after the prompt; remove the row")
    if isinstance(prompt, str):
        return Text(prompt, completion)
    return _conversation(prompt + completion, len(prompt), column, place)


def _conversation(messages: list[Message], num_prompt: int, column: str, place: str) -> Conversation:
    if messages[0]["role"] == "assistant":
        raise DataError(f"{place}: the conversation begins with the assistant; put a system or user message before it")
    if messages[-1]["role"] != "assistant":
        role = messages[-1]["role"]
        raise DataError(f"{place}: {column} ends with a {role} message; remove what follows the last assistant message")
    return Conversation(messages, num_prompt)


def _has(row: Row, column: str) -> bool:
    return row.get(column) is not None  # Parquet gives a null to rows that lack a column


def _read(row: Row, column: str, place: str, kind: str = "") -> str | list[Message]:
    if not _has(row, column):
        raise _missing(row, place, kind, column)
    value = row[column]
    if isinstance(value, list):
        return _messages(value, column, place)
    if not isinstance(value, str):
        raise DataError(
            f"{place}: {column} must be text or a list of messages, not {type(value).__name__}; mend the row"
        )
    if not value.strip():
        raise DataError(f"{place}: {column} is empty; remove the row")
    return value


def _messages(value: list[Any], column: str, place: str) -> list[Message]:
    if not value:
        raise DataError(f"{place}: {column} is empty; remove the row")
    messages: list[Message] = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            found = ", ".join(map(str, message)) if isinstance(message, dict) else type(message).__name__
            raise DataError(f"{place}: {column}[{i}] is no message (found: {found}); it needs role and content")
        content = message.get("content")
        if not isinstance(content, str) and not message.get("tool_calls"):
            raise DataError(f"{place}: {column}[{i}].content must be text, not {type(content).__name__}; mend the row")
        if message["role"] == "assistant" and not (content or "").strip() and not message.get("tool_calls"):
            raise DataError(f"{place}: {column}[{i}].content is empty; remove the turn or the row")
        messages.append({key: part for key, part in message.items() if part is not None})  # Arrow's filling
    return messages


def _missing(row: Row, place: str, kind: str, column: str | None = None) -> DataError:
    """The error for a row without what its kind needs, with the nearest column it does have."""
    needs, names = _NEEDS[kind]
    found = [name for name in row if name not in names]
    for name in [column] if column else names:
        near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
        if near:
            fix = f"did you mean {near[0]}? Set data.columns: {{{name}: {near[0]}}}"
            break
    else:
        fix = f"name yours under data.columns, e.g. {{{column or names[0]}: YOUR_COLUMN}}"
    what = f"no column {column!r}" if column and column not in row else f"{column} is null" if column else "no text"
    return DataError(f"{place}: {what} (found: {', '.join(row) or 'nothing'}); {kind} need {needs}; {fix}")
