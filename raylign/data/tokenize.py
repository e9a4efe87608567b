"""Rows -> token ids, once. Masks follow from the lengths of the parts, never from token ids (pad may equal eos).

Parts are tokenised apart, so no token merges across the border of prompt and completion, and the tokens a policy is
asked to continue are the very tokens it learned after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from raylign.config.data import DataConfig
from raylign.data.chat import Part, render_parts, render_prompt
from raylign.data.formats import Example, Text, pair_of, prompt_of, sequence_of
from raylign.data.limits import LengthPolicy, Limit, TokenRow
from raylign.data.sources import read_rows
from raylign.errors import DataError
from raylign.types import PairSet, PromptSet, Ragged, SequenceSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_prompts(config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int) -> PromptSet:
    """Prompts to sample from, with all other columns of their rows.

    Args:
        max_prompt_tokens: what the model's context leaves for the prompt; `config.max_prompt_tokens` may tighten it.
    Returns:
        `columns["prompt"]` is the text (rendered, for a conversation; never cut); a column a row lacks is None.
    Raises:
        DataError: unreadable rows, a missing or malformed `prompt`, or a prompt that is too long.
    """
    rows = read_rows(config)
    texts: list[str] = []
    standard: list[bool] = []
    for place, row in rows.placed():
        prompt = prompt_of(row, place)
        standard.append(isinstance(prompt, str))
        texts.append(prompt if isinstance(prompt, str) else render_prompt(tokenizer, prompt, place))
    places = [place for place, _ in rows.placed()]
    tokenised = _tokenise(tokenizer, [[(text, False)] for text in texts], standard, places)
    limit = Limit.tighter(max_prompt_tokens, config.max_prompt_tokens, "data.max_prompt_tokens")
    [fitted], kept = _fit(LengthPolicy(config, prompt=limit, total=None), [tokenised], places)
    names = dict.fromkeys(name for row in rows.rows for name in row)
    columns = {name: [rows[i].get(name) for i in kept] for name in names}
    columns["prompt"] = [texts[i] for i in kept]
    return PromptSet(Ragged.from_rows((row.tokens for row in fitted), np.int32), columns)


def load_sequences(config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> SequenceSet:
    """Sequences to learn from (SFT).

    Args:
        max_tokens: the model's context length; `config.max_tokens` may tighten it.
    Raises:
        DataError: unreadable rows, missing or malformed columns, or a sequence that is too long.
    """
    rows = read_rows(config)
    places = [place for place, _ in rows.placed()]
    examples = [sequence_of(row, place) for place, row in rows.placed()]
    [fitted], _ = _fit(_policy(config, max_tokens), [_tokenise_examples(tokenizer, examples, places)], places)
    return _sequence_set(fitted)


def load_pairs(config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> PairSet:
    """Preference pairs (DPO, reward model). A pair of which one side is left out is left out whole.

    Args:
        max_tokens: the model's context length, for each side; `config.max_tokens` may tighten it.
    Raises:
        DataError: unreadable rows, missing or malformed columns, equal sides, or a side that is too long.
    """
    rows = read_rows(config)
    places = [place for place, _ in rows.placed()]
    chosen, rejected = zip(*(pair_of(row, place) for place, row in rows.placed()), strict=True)
    sides = [_tokenise_examples(tokenizer, examples, places) for examples in (chosen, rejected)]
    [chosen, rejected], _ = _fit(_policy(config, max_tokens), sides, places)
    return PairSet(_sequence_set(chosen), _sequence_set(rejected))


def _policy(config: DataConfig, max_tokens: int) -> LengthPolicy:
    prompt = Limit(config.max_prompt_tokens, "raise data.max_prompt_tokens") if config.max_prompt_tokens else None
    return LengthPolicy(config, prompt=prompt, total=Limit.tighter(max_tokens, config.max_tokens, "data.max_tokens"))


def _fit(
    policy: LengthPolicy, sides: list[list[TokenRow]], places: list[str]
) -> tuple[list[list[TokenRow]], list[int]]:
    """The rows of every side that the policy keeps, and their indices."""
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
            continue  # what made one side the better one was cut off
        num_cut += cut
        kept.append(i)
        for rows, row in zip(fitted, after, strict=True):
            rows.append(row)
    policy.report(len(places), len(places) - len(kept), num_cut)
    return fitted, kept


def _tokenise_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], places: list[str]
) -> list[TokenRow]:
    parts = [_parts(tokenizer, example, place) for example, place in zip(examples, places, strict=True)]
    return _tokenise(tokenizer, parts, [isinstance(example, Text) for example in examples], places)


def _parts(tokenizer: PreTrainedTokenizerBase, example: Example, place: str) -> list[Part]:
    if not isinstance(example, Text):
        return render_parts(tokenizer, example, place)
    prompt: list[Part] = [] if example.prompt is None else [(example.prompt, False)]
    return [*prompt, (example.completion, True)]


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[Part]], standard: list[bool], places: list[str]
) -> list[TokenRow]:
    """Tokenise the parts of all rows and join them.

    Standard rows get the tokenizer's bos before and, if they end learned, one eos behind; a chat template has written
    its own.
    """
    texts = [text for parts in rows for text, _ in parts]
    encoded = _encode_all(tokenizer, texts)
    probe = next((parts[0][0] for parts, is_standard in zip(rows, standard, strict=True) if is_standard), None)
    bos = [] if probe is None else _bos(tokenizer, probe)
    eos = cast("int | None", tokenizer.eos_token_id)
    out: list[TokenRow] = []
    for parts, is_standard, place in zip(rows, standard, places, strict=True):
        tokens = list(bos) if is_standard else []
        mask = [False] * len(tokens)
        for text, learned in parts:
            ids = next(encoded)
            if not ids:
                raise DataError(f"{place}: the tokenizer makes no tokens of {text[:40]!r}; check model.tokenizer")
            tokens += ids
            mask += [learned] * len(ids)
        if is_standard and mask[-1]:
            if eos is None:
                raise DataError(f"{place}: tokenizer {tokenizer.name_or_path!r} has no eos token; set its eos_token")
            if tokens[-1] != eos:  # the text may bring its own
                tokens.append(eos)
                mask.append(True)
        mask[0] = False  # nothing precedes it
        if parts[-1][1] and True not in mask:
            raise DataError(
                f"{place}: the row is one token long, and nothing precedes it to learn it from; remove the row"
            )
        out.append(_token_row(tokens, mask, num_bos=len(bos) if is_standard else 0))
    return out


def _token_row(tokens: list[int], mask: list[bool], num_bos: int) -> TokenRow:
    num_prompt = mask.index(True) if True in mask else len(mask)
    return TokenRow(np.array(tokens, dtype=np.int32), np.array(mask, dtype=np.bool_), num_prompt, num_bos)


def _bos(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The special tokens that the tokenizer puts before a text; those it puts behind (some add eos) are left."""
    [bare], [full] = (_encode(tokenizer, [text], special=special) for special in (False, True))
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at]
    name = tokenizer.name_or_path
    raise DataError(f"tokenizer {name!r}: it tokenises text differently beside special tokens; use another tokenizer")


def _encode_all(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[list[int]]:
    """Ids of each text, some thousand texts a call: calls are fast, and their offsets and strings do not pile up."""
    for at in range(0, len(texts), 4096):
        yield from _encode(tokenizer, texts[at : at + 4096], special=False)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    encoding = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
    return encoding["input_ids"]


def _sequence_set(rows: list[TokenRow]) -> SequenceSet:
    return SequenceSet(
        Ragged.from_rows((row.tokens for row in rows), np.int32),
        Ragged.from_rows((row.completion_mask for row in rows), np.bool_),
    )
