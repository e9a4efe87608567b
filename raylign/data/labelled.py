"""Loading of completions labelled good or bad, and of the mismatched rows that KTO's reference point needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from raylign.config.data import DataConfig
from raylign.data.formats import labelled_of
from raylign.data.limits import TokenRow
from raylign.data.loaders import fit, length_policy, sequence_set
from raylign.data.sources import read_rows
from raylign.data.tokenize import tokenise_examples
from raylign.errors import DataError
from raylign.types import LabelledSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_labelled(config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> LabelledSet:
    """Load single completions with a label; a preference pair gives two, chosen good and rejected bad.

    Args:
        max_tokens: the model's context length; `config.max_tokens` may lower it.
    Raises:
        DataError: rows are unreadable, columns are missing or malformed, a sequence is too long, or all labels are the
            same.
    """
    rows = read_rows(config)
    examples_of_rows = [[(place, *example) for example in labelled_of(row, place)] for place, row in rows.placed()]
    # All chosen before all rejected, as in TRL, so that mismatched completions are as often rejected as chosen.
    ordered = [
        *(examples[0] for examples in examples_of_rows),
        *(example for examples in examples_of_rows for example in examples[1:]),
    ]
    places, examples, labels = zip(*ordered, strict=True)
    policy = length_policy(config, max_tokens)
    [fitted], kept = fit(policy, [tokenise_examples(tokenizer, examples, places)], places)
    desirable = np.array([labels[i] for i in kept], dtype=np.bool_)
    num_good, num_bad = int(desirable.sum()), int((~desirable).sum())
    if not (num_good and num_bad):
        fix = "add bad rows, or set algorithm.name: sft" if num_good else "add good rows"
        raise DataError(
            f"{config.path}: {num_good} rows are labelled good and {num_bad} bad, and KTO learns from their contrast; {fix}"
        )
    assert policy.total
    return LabelledSet(sequence_set(fitted), desirable, sequence_set(_mismatched(fitted, policy.total.tokens)))


def _mismatched(rows: Sequence[TokenRow], max_tokens: int) -> list[TokenRow]:
    """Return each prompt with the completion of the next row that has another prompt, cut to max_tokens."""
    out = []
    for row, other in zip(rows, _partners(rows), strict=True):
        first = rows[other].num_prompt
        tokens = np.concatenate([row.tokens[: row.num_prompt], rows[other].tokens[first:]])[:max_tokens]
        mask = np.concatenate([row.completion_mask[: row.num_prompt], rows[other].completion_mask[first:]])[:max_tokens]
        out.append(TokenRow(tokens, mask, row.num_prompt, row.num_bos))
    return out


def _partners(rows: Sequence[TokenRow]) -> list[int]:
    """Return for each row the index of the next row, cyclically, with another prompt; if none has, of the next row."""
    prompts = [row.tokens[: row.num_prompt].tobytes() for row in rows]
    num = len(rows)
    partners = [(i + 1) % num for i in range(num)]
    if len(set(prompts)) > 1:
        for i in reversed(range(2 * num)):  # twice around, so that the last rows know the partners of the first rows
            row, after = i % num, (i + 1) % num
            partners[row] = after if prompts[after] != prompts[row] else partners[after]
    return partners
