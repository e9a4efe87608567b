"""Reading and checking of single columns: each function returns the value or raises an error that names the place."""

from __future__ import annotations

import difflib
import math
from typing import Any

from raylign.errors import DataError

Row = dict[str, Any]
Message = dict[str, Any]  # role, content, and whatever else the chat template reads

_NEEDS = {
    "prompts": ("prompt (text or messages)", ("prompt",)),
    "sequences": ("text, or messages, or prompt + completion", ("text", "messages", "prompt", "completion")),
    "pairs": ("chosen + rejected (and prompt, unless both begin with it)", ("chosen", "rejected", "prompt")),
    "labelled rows": (
        "prompt + completion + label (or the pair chosen + rejected)",
        ("prompt", "completion", "label", "chosen", "rejected"),
    ),
}


def has(row: Row, column: str) -> bool:
    """Return whether the row has a value in the column; null counts as none."""
    return row.get(column) is not None  # Parquet gives a null to rows that lack a column


def read(row: Row, column: str, place: str, kind: str = "", blank: bool = False) -> str | list[Message]:
    """Return the text or the messages of a column.

    Args:
        kind: the kind of rows that the dataset needs, for the error message: a key of `_NEEDS`.
        blank: permit an empty text.
    Raises:
        DataError: the column is missing, empty or of another type.
    """
    if not has(row, column):
        raise missing(row, place, kind, column)
    value = row[column]
    if isinstance(value, list):
        return _messages(value, column, place)
    if not isinstance(value, str):
        raise DataError(
            f"{place}: {column} must be text or a list of messages, not {type(value).__name__}; fix the row"
        )
    if not (blank or value.strip()):
        raise DataError(f"{place}: {column} is empty; remove the row")
    return value


def end_of(row: Row, column: str, place: str) -> bool | None:
    """Return True if the completion ended by itself, False if it was cut by length, None if the row does not say.

    Raises:
        DataError: the value is not a boolean.
    """
    value = row.get(column)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{place}: {column} must be true or false, not {value!r}; fix the row")
    return value


def label_of(row: Row, place: str) -> bool:
    """Return whether the row labels its completion as desirable.

    Raises:
        DataError: the label is not true, false, 1 or 0.
    """
    label = row["label"]
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise DataError(f"{place}: label must be true or false (or 1 or 0), not {label!r}; fix the row")
    return bool(label)


def margin_of(row: Row, place: str) -> float:
    """Return by how much the chosen completion should win, in units of the score.

    Raises:
        DataError: the margin is missing or is not a finite number.
    """
    if not has(row, "margin"):
        columns = ", ".join(row)
        raise DataError(
            f"{place}: no margin (found: {columns}); give each pair a number, name its column under data.columns, or "
            "set algorithm.margin: false"
        )
    margin = row["margin"]
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise DataError(f"{place}: margin must be a number, not {margin!r}; fix the row")
    return float(margin)


def missing(row: Row, place: str, kind: str, column: str | None = None) -> DataError:
    """Return the error for a row that lacks a column of its kind; the message suggests the nearest column it has."""
    needs, names = _NEEDS[kind]
    candidates = [name for name in row if name not in names]
    for name in [column] if column else [name for name in names if not has(row, name)]:
        near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
        if near:
            fix = f"did you mean {near[0]}? Set data.columns: {{{name}: {near[0]}}}"
            break
    else:
        fix = f"name your column under data.columns, e.g. {{{column or names[0]}: YOUR_COLUMN}}"
    what = f"no column {column!r}" if column and column not in row else f"{column} is null" if column else "no text"
    return DataError(f"{place}: {what} (found: {', '.join(row) or 'nothing'}); {kind} need {needs}; {fix}")


def _messages(value: list[Any], column: str, place: str) -> list[Message]:
    if not value:
        raise DataError(f"{place}: {column} is empty; remove the row")
    messages: list[Message] = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            keys = ", ".join(map(str, message)) if isinstance(message, dict) else type(message).__name__
            raise DataError(f"{place}: {column}[{i}] is not a message (found: {keys}); it needs role and content")
        content = message.get("content")
        if not isinstance(content, str) and not message.get("tool_calls"):
            raise DataError(f"{place}: {column}[{i}].content must be text, not {type(content).__name__}; fix the row")
        if message["role"] == "assistant" and not (content or "").strip() and not message.get("tool_calls"):
            raise DataError(f"{place}: {column}[{i}].content is empty; remove the turn or the row")
        messages.append({key: part for key, part in message.items() if part is not None})  # Arrow adds nulls
    return messages
