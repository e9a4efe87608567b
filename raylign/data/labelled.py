"""Completions marked good or bad, and the mismatched rows beside them that KTO measures from."""

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
    """Single completions with a label; a preference pair gives two, chosen good and rejected bad.

    Args:
        max_tokens: the model's context length; `config.max_tokens` may tighten it.
    Raises:
        DataError: unreadable rows, missing or malformed columns, a sequence that is too long, or one label only.
    """
    rows = read_rows(config)
    found = [[(place, *example) for example in labelled_of(row, place)] for place, row in rows.placed()]
    # All chosen before all rejected, as in TRL: so a mismatched completion is a rejected one as often as a chosen one.
    ordered = [*(sides[0] for sides in found), *(side for sides in found for side in sides[1:])]
    places, examples, labels = zip(*ordered, strict=True)
    policy = length_policy(config, max_tokens)
    [fitted], kept = fit(policy, [tokenise_examples(tokenizer, examples, places)], places)
    desirable = np.array([labels[i] for i in kept], dtype=np.bool_)
    num_good, num_bad = int(desirable.sum()), int((~desirable).sum())
    if not (num_good and num_bad):
        fix = "give bad ones too, or set algorithm.name: sft" if num_good else "give good ones too"
        raise DataError(
            f"{config.path}: {num_good} rows are labelled good and {num_bad} bad, and KTO learns from their contrast; {fix}"
        )
    assert policy.total
    return LabelledSet(sequence_set(fitted), desirable, sequence_set(_mismatched(fitted, policy.total.tokens)))


def _mismatched(rows: Sequence[TokenRow], max_tokens: int) -> list[TokenRow]:
    """Each prompt with the completion of the next row that answers another one, cut to the context."""
    out = []
    for row, other in zip(rows, _partners(rows), strict=True):
        first = rows[other].num_prompt
        tokens = np.concatenate([row.tokens[: row.num_prompt], rows[other].tokens[first:]])[:max_tokens]
        mask = np.concatenate([row.completion_mask[: row.num_prompt], rows[other].completion_mask[first:]])[:max_tokens]
        out.append(TokenRow(tokens, mask, row.num_prompt, row.num_bos))
    return out


def _partners(rows: Sequence[TokenRow]) -> list[int]:
    """For each row the next one, cyclically, with another prompt; where all have the same prompt, just the next one."""
    prompts = [row.tokens[: row.num_prompt].tobytes() for row in rows]
    num = len(rows)
    partners = [(i + 1) % num for i in range(num)]
    if len(set(prompts)) > 1:
        for i in reversed(range(2 * num)):  # twice around, so that the last rows know what the first ones found
            row, after = i % num, (i + 1) % num
            partners[row] = after if prompts[after] != prompts[row] else partners[after]
    return partners
