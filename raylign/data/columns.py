"""Single columns of a row, checked: each function returns what the column holds or says where and how it is wrong."""

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
    return row.get(column) is not None  # Parquet gives a null to rows that lack a column


def read(row: Row, column: str, place: str, kind: str = "", blank: bool = False) -> str | list[Message]:
    """Text or messages. `blank`: the text may be empty."""
    if not has(row, column):
        raise missing(row, place, kind, column)
    value = row[column]
    if isinstance(value, list):
        return _messages(value, column, place)
    if not isinstance(value, str):
        raise DataError(
            f"{place}: {column} must be text or a list of messages, not {type(value).__name__}; mend the row"
        )
    if not (blank or value.strip()):
        raise DataError(f"{place}: {column} is empty; remove the row")
    return value


def end_of(row: Row, column: str, place: str) -> bool | None:
    """True where a completion ended by itself, False where it was cut by length, None where the row does not say."""
    value = row.get(column)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{place}: {column} must be true or false, not {value!r}; mend the row")
    return value


def label_of(row: Row, place: str) -> bool:
    """Whether the completion is desirable."""
    label = row["label"]
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise DataError(f"{place}: label must be true or false (or 1 or 0), not {label!r}; mend the row")
    return bool(label)


def margin_of(row: Row, place: str) -> float:
    """By how much the chosen completion is to win."""
    if not has(row, "margin"):
        found = ", ".join(row)
        raise DataError(
            f"{place}: no margin (found: {found}); give each pair a number, name yours under data.columns, or set "
            "algorithm.margin: false"
        )
    margin = row["margin"]
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise DataError(f"{place}: margin must be a number, not {margin!r}; mend the row")
    return float(margin)


def missing(row: Row, place: str, kind: str, column: str | None = None) -> DataError:
    """The error for a row without what its kind needs, with the nearest column it does have."""
    needs, names = _NEEDS[kind]
    found = [name for name in row if name not in names]
    for name in [column] if column else [name for name in names if not has(row, name)]:
        near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
        if near:
            fix = f"did you mean {near[0]}? Set data.columns: {{{name}: {near[0]}}}"
            break
    else:
        fix = f"name yours under data.columns, e.g. {{{column or names[0]}: YOUR_COLUMN}}"
    what = f"no column {column!r}" if column and column not in row else f"{column} is null" if column else "no text"
    return DataError(f"{place}: {what} (found: {', '.join(row) or 'nothing'}); {kind} need {needs}; {fix}")


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
