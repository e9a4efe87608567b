"""Rows longer than they may be: refused, left out or cut, as `data.long_rows` says, and counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from raylign.config.data import DataConfig
from raylign.errors import DataError
from raylign.types import BoolArray, IntArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenRow:
    """One tokenised row; a prompt alone is a row without a completion.

    "2 + 2 = | 4 <eos>" with a bos: tokens [0, 5, 9, 5, 7, 6, 1], mask [F, F, F, F, F, T, T], num_prompt 5, num_bos 1.
    """

    tokens: IntArray  # [L]
    completion_mask: BoolArray  # [L], True where the token is learned
    num_prompt: int  # tokens before the first learned one
    num_bos: int  # special tokens the prompt begins with, which cutting its beginning spares


@dataclass(frozen=True)
class Limit:
    tokens: int
    origin: str  # the setting that would raise it

    @classmethod
    def tighter(cls, model_limit: int, configured: int | None, key: str) -> Limit:
        """The smaller of what the model can take and what the config accepts."""
        if configured is not None and configured < model_limit:
            return cls(configured, f"raise {key}")
        return cls(model_limit, "use a model with a longer context")


class LengthPolicy:
    """Applies `config.long_rows`; `prompt` bounds the tokens before the first learned one, `total` all of them."""

    def __init__(self, config: DataConfig, *, prompt: Limit | None, total: Limit | None) -> None:
        self.config = config
        self.prompt = prompt
        self.total = total

    def fit(self, row: TokenRow, place: str) -> TokenRow | None:
        """The row itself if it is short enough, a cut copy, or None if it is to be left out.

        A row that has no room for a single learned token after cutting is left out too.

        Raises:
            DataError: the row is too long and `long_rows` is error.
        """
        if self.prompt is not None and row.num_prompt > self.prompt.tokens:
            fault = ("the prompt", row.num_prompt, self.prompt)
        elif self.total is not None and len(row.tokens) > self.total.tokens:
            fault = ("prompt + completion", len(row.tokens), self.total)
        else:
            return row
        match self.config.long_rows:
            case "error":
                raise _too_long(place, *fault)
            case "drop":
                return None
            case "truncate":
                if self.prompt is not None:
                    row = _cut_prompt(row, self.prompt.tokens)
                return row if self.total is None else _cut_end(row, self.total.tokens)

    def report(self, num_rows: int, num_dropped: int, num_cut: int) -> None:
        """Log what happened to the long rows.

        Raises:
            DataError: no row is left.
        """
        if not (num_dropped or num_cut):
            return
        bounds = (("prompt", self.prompt), ("prompt + completion", self.total))
        limits = ", ".join(f"{name} at most {limit.tokens} tokens" for name, limit in bounds if limit)
        if num_dropped == num_rows:
            raise DataError(f"{self.config.path}: all {num_rows} rows are too long ({limits}); raise a limit")
        logger.warning(
            "%s: of %d rows %d were dropped and %d truncated: %s",
            self.config.path, num_rows, num_dropped, num_cut, limits,
        )  # fmt: skip


def _cut_prompt(row: TokenRow, limit: int) -> TokenRow:
    """The prompt loses its beginning, but not its bos."""
    excess = row.num_prompt - limit
    if excess <= 0:
        return row
    spared = min(row.num_bos, limit)
    keep = np.r_[0:spared, spared + excess : len(row.tokens)]
    return replace(row, tokens=row.tokens[keep], completion_mask=row.completion_mask[keep], num_prompt=limit)


def _cut_end(row: TokenRow, limit: int) -> TokenRow | None:
    mask = row.completion_mask[:limit]
    return replace(row, tokens=row.tokens[:limit], completion_mask=mask) if mask.any() else None


def _too_long(place: str, what: str, length: int, limit: Limit) -> DataError:
    return DataError(
        f"{place}: {what} has {length} tokens, the limit is {limit.tokens}; "
        f"shorten it, {limit.origin}, or set data.long_rows to drop or truncate"
    )
