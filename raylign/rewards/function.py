"""Scores from a Python function over text, `score(prompts, completions, **columns) -> list[float]`, as in TRL."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from raylign.errors import RaylignError, UserError, folded
from raylign.types import IntArray, PromptSet, RolloutBatch, Scores

logger = logging.getLogger(__name__)


class FunctionSource:
    """A reward source that calls a Python function once a batch, and once more for each row that failed.

    The columns of the prompt set are passed as keyword lists beside `prompts` and `completions`, one entry for each
    completion. A row whose call raises, or whose score is None, NaN, infinite or too large for fp32, is invalid; each
    kind of failure is logged the first time.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[float]],
        tokenizer: PreTrainedTokenizerBase,
        place: str = "reward.function",
    ) -> None:
        """Create the source; `tokenizer` is the policy's, `place` the dotted config path for error messages."""
        self._function = function
        self._tokenizer = tokenizer
        self._place = place
        self._logged: set[str] = set()

    def score(self, batch: RolloutBatch, prompts: PromptSet) -> Scores:
        """Score every row of a batch by the function: [N].

        Raises:
            UserError: the function does not accept the columns, or does not return one number per completion.
            RaylignError: the function failed on every row; the message gives the first cause.
        """
        # A completion is everything from the prompt to the last sampled token, including tool output between turns.
        zeros = np.zeros_like(batch.prompt_lengths)
        arguments = {
            "prompts": self._decode(batch.tokens, zeros, batch.prompt_lengths),
            "completions": self._decode(batch.tokens, batch.prompt_lengths, batch.lengths),
            **{name: [column[row] for row in batch.prompt_rows] for name, column in prompts.columns.items()},
        }
        self._check_arguments(arguments, prompts)
        values = np.full(len(batch), np.nan, dtype=np.float32)
        if len(batch) == 0:
            return Scores(values, np.zeros(0, dtype=np.bool_))
        causes: list[str] = []
        values[:] = self._call(arguments, len(batch), causes)
        for row in np.flatnonzero(~np.isfinite(values)):
            alone = {name: [column[row]] for name, column in arguments.items()}
            (values[row],) = self._call(alone, 1, causes)
        valid = np.isfinite(values)
        if not valid.any():
            raise RaylignError(f"{self._place}: failed on all {len(batch)} completions; first cause: {causes[0]}")
        return Scores(values, valid)

    def _decode(self, tokens: IntArray, starts: NDArray[Any], ends: NDArray[Any]) -> list[str]:
        rows = [row[start:end].tolist() for row, start, end in zip(tokens, starts, ends, strict=True)]
        return [str(self._tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    def _call(self, arguments: dict[str, list[Any]], num_rows: int, causes: list[str]) -> np.ndarray:
        """Return scores [num_rows] in fp32, NaN or infinite where the function failed; its errors go to `causes`."""
        try:
            result = self._function(**arguments)
        except Exception as e:  # noqa: BLE001 - the user's code may raise anything; the rows become invalid
            self._note(type(e).__name__, f"{type(e).__name__}: {folded(e)}", causes)
            return np.full(num_rows, np.nan, dtype=np.float32)
        numbers = self._numbers(result, num_rows)
        with np.errstate(over="ignore"):
            values = np.array(numbers, dtype=np.float64).astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            self._note("non-finite", f"returned {numbers[bad[0]]}, which is not a finite fp32 number", causes)
        return values

    def _numbers(self, result: Any, num_rows: int) -> list[float]:
        place = f"{self._place}: returned"
        fix = "return one number for each completion"
        try:
            items = list(result)
        except TypeError:
            raise UserError(f"{place} {type(result).__name__}, not a list; {fix}") from None
        if len(items) != num_rows:
            raise UserError(f"{place} {len(items)} scores for {num_rows} completions; {fix}")
        numbers = []
        for item in items:
            if item is None:  # as in TRL: the function does not apply to the row
                numbers.append(math.nan)
                continue
            if not isinstance(item, SupportsFloat):  # a string is not, though float("1.5") would read it
                raise UserError(f"{place} {type(item).__name__} among the scores; {fix}")
            try:
                numbers.append(float(item))
            except OverflowError:
                numbers.append(math.inf)
            except (TypeError, ValueError, RuntimeError):  # an array or tensor of several numbers
                raise UserError(f"{place} {type(item).__name__} of several numbers as one score; {fix}") from None
        return numbers

    def _check_arguments(self, arguments: dict[str, list[Any]], prompts: PromptSet) -> None:
        taken = prompts.columns.keys() & {"prompts", "completions"}
        if taken:
            raise UserError(f"{self._place}: the data has a column {min(taken)!r}, a reserved name; rename it")
        try:
            inspect.signature(self._function).bind(**arguments)
        except (TypeError, ValueError) as e:
            names = ", ".join(arguments)
            raise UserError(
                f"{self._place}: cannot be called with {names}: {e}; write it as score(prompts, completions, **columns)"
            ) from None

    def _note(self, kind: str, cause: str, causes: list[str]) -> None:
        causes.append(cause)
        if kind not in self._logged:
            self._logged.add(kind)
            logger.warning("%s: %s; such rows are retried one by one, then marked invalid", self._place, cause)
