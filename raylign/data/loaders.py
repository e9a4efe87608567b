"""Loading of prompts, sequences and pairs from files, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from raylign.config.data import DataConfig
from raylign.data.chat import render_prompt
from raylign.data.columns import margin_of
from raylign.data.formats import pair_of, prompt_of, sequence_of
from raylign.data.limits import LengthPolicy, Limit, TokenRow
from raylign.data.sources import read_rows
from raylign.data.tokenize import tokenise, tokenise_examples
from raylign.types import PairSet, PromptSet, Ragged, SequenceSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_prompts(config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int) -> PromptSet:
    """Load the prompts to sample from, with all other columns of their rows.

    Args:
        max_prompt_tokens: the part of the model's context that is left for the prompt; `config.max_prompt_tokens` may
            lower it.
    Returns:
        `columns["prompt"]` is the text (rendered, for a conversation; never cut); a column that a row lacks is None.
    Raises:
        DataError: rows are unreadable, a `prompt` is missing or malformed, or a prompt is too long.
    """
    rows = read_rows(config)
    texts: list[str] = []
    standard: list[bool] = []
    for place, row in rows.placed():
        prompt = prompt_of(row, place)
        standard.append(isinstance(prompt, str))
        texts.append(prompt if isinstance(prompt, str) else render_prompt(tokenizer, prompt, place))
    places = [place for place, _ in rows.placed()]
    tokenised = tokenise(tokenizer, [[(text, False)] for text in texts], standard, [False] * len(texts), places)
    limit = Limit.tighter(max_prompt_tokens, config.max_prompt_tokens, "data.max_prompt_tokens")
    [fitted], kept = fit(LengthPolicy(config, prompt=limit, total=None), [tokenised], places)
    names = dict.fromkeys(name for row in rows.rows for name in row)
    columns = {name: [rows[i].get(name) for i in kept] for name in names}
    columns["prompt"] = [texts[i] for i in kept]
    return PromptSet(Ragged.from_rows((row.tokens for row in fitted), np.int32), columns)


def load_sequences(config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> SequenceSet:
    """Load the sequences to learn from (SFT).

    Args:
        max_tokens: the model's context length; `config.max_tokens` may lower it.
    Raises:
        DataError: rows are unreadable, columns are missing or malformed, or a sequence is too long.
    """
    rows = read_rows(config)
    places = [place for place, _ in rows.placed()]
    examples = [sequence_of(row, place) for place, row in rows.placed()]
    [fitted], _ = fit(length_policy(config, max_tokens), [tokenise_examples(tokenizer, examples, places)], places)
    return sequence_set(fitted)


def load_pairs(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int, margin: bool = False
) -> PairSet:
    """Load preference pairs (DPO and its variants, reward models); a pair is dropped if either side is.

    Args:
        max_tokens: the model's context length, for each side; `config.max_tokens` may lower it.
        margin: read the column `margin` too.
    Raises:
        DataError: rows are unreadable, columns are missing or malformed, both sides are equal, or a side is too long.
    """
    rows = read_rows(config)
    places = [place for place, _ in rows.placed()]
    chosen, rejected = zip(*(pair_of(row, place) for place, row in rows.placed()), strict=True)
    margins = [margin_of(row, place) for place, row in rows.placed()] if margin else None
    sides = [tokenise_examples(tokenizer, examples, places) for examples in (chosen, rejected)]
    [chosen, rejected], kept = fit(length_policy(config, max_tokens), sides, places)
    kept_margins = None if margins is None else np.array([margins[i] for i in kept], dtype=np.float32)
    return PairSet(sequence_set(chosen), sequence_set(rejected), kept_margins)


def length_policy(config: DataConfig, max_tokens: int) -> LengthPolicy:
    """Return the length policy for whole sequences in a context of `max_tokens`."""
    prompt = Limit(config.max_prompt_tokens, "raise data.max_prompt_tokens") if config.max_prompt_tokens else None
    return LengthPolicy(config, prompt=prompt, total=Limit.tighter(max_tokens, config.max_tokens, "data.max_tokens"))


def fit(
    policy: LengthPolicy, sides: Sequence[list[TokenRow]], places: Sequence[str]
) -> tuple[list[list[TokenRow]], list[int]]:
    """Apply the length policy to every side: return the rows that are kept, for each side, and their indices.

    An item is kept only if every side of it is.
    """
    fitted: list[list[TokenRow]] = [[] for _ in sides]
    kept: list[int] = []
    num_cut = 0
    for i, place in enumerate(places):
        before = [side[i] for side in sides]
        after = [row for row in (policy.fit(row, place) for row in before) if row is not None]
        if len(after) < len(before):
            continue
        cut = any(a is not b for a, b in zip(after, before, strict=True))
        if cut and len(after) == 2 and np.array_equal(after[0].tokens, after[1].tokens):
            continue  # the difference between the two sides was cut off
        num_cut += cut
        kept.append(i)
        for rows, row in zip(fitted, after, strict=True):
            rows.append(row)
    policy.report(len(places), len(places) - len(kept), num_cut)
    return fitted, kept


def sequence_set(rows: Sequence[TokenRow]) -> SequenceSet:
    """Pack tokenised rows into two flat arrays, of tokens and of masks."""
    return SequenceSet(
        Ragged.from_rows((row.tokens for row in rows), np.int32),
        Ragged.from_rows((row.completion_mask for row in rows), np.bool_),
    )
