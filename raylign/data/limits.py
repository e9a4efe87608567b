"""Length limits: rows that are too long are refused, dropped or cut, as `data.long_rows` says, and counted."""

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
    """A tokenised row; a prompt alone is a row without a completion.

    "2 + 2 = | 4 <eos>" with a bos: tokens [0, 5, 9, 5, 7, 6, 1], mask [F, F, F, F, F, T, T], num_prompt 5, num_bos 1.
    """

    tokens: IntArray  # [L]
    completion_mask: BoolArray  # [L], True where the token is learned
    num_prompt: int  # number of tokens before the first learned token
    num_bos: int  # number of special tokens at the beginning of the prompt, which are kept when it is cut


@dataclass(frozen=True)
class Limit:
    """The largest length that is allowed, in tokens, and the advice how to raise it."""

    tokens: int
    origin: str  # advice for the error message, e.g. "raise data.max_tokens"

    @classmethod
    def tighter(cls, model_limit: int, configured: int | None, key: str) -> Limit:
        """Return the smaller of the model's and the configured limit."""
        if configured is not None and configured < model_limit:
            return cls(configured, f"raise {key}")
        return cls(model_limit, "use a model with a longer context")


class LengthPolicy:
    """The rule for long rows, `config.long_rows`.

    `prompt` limits the tokens before the first learned token, `total` all tokens of a row.
    """

    def __init__(self, config: DataConfig, *, prompt: Limit | None, total: Limit | None) -> None:
        self.config = config
        self.prompt = prompt
        self.total = total

    def fit(self, row: TokenRow, place: str) -> TokenRow | None:
        """Return the row itself if it is short enough, a cut copy, or None if the row is dropped.

        A row that would keep no learned token after cutting is dropped too.

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
        """Log how many long rows were dropped and cut.

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
    """Cut the beginning of the prompt, but keep its bos."""
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
