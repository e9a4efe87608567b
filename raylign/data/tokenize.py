"""Tokenisation. Masks follow from the lengths of the parts, never from token ids (pad may equal eos).

Parts are tokenised separately, so that no token spans the end of the prompt and the beginning of the completion:
a policy samples after exactly the prompt tokens that it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from raylign.data.chat import Part, render_parts
from raylign.data.formats import Example, Text
from raylign.data.limits import TokenRow
from raylign.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenise_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], places: Sequence[str]
) -> list[TokenRow]:
    """Tokenise examples, one row for each; `places` name them in errors.

    Raises:
        DataError: the tokenizer has no chat template or no eos, or makes no tokens of a text.
    """
    parts = [_parts(tokenizer, example, place) for example, place in zip(examples, places, strict=True)]
    standard = [isinstance(example, Text) for example in examples]
    ended = [isinstance(example, Text) and example.finished for example in examples]
    return tokenise(tokenizer, parts, standard, ended, places)


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[Part]],
    standard: Sequence[bool],
    ended: Sequence[bool],
    places: Sequence[str],
) -> list[TokenRow]:
    """Tokenise the parts of every row and join them.

    Args:
        rows: parts of each row, in order.
        standard: True for a row that begins with the tokenizer's bos (added unless the text has it); conversations have
            the special tokens of their chat template.
        ended: True for a row that ends with eos (added unless the text has it).
        places: name of each row in errors.
    Raises:
        DataError: the tokenizer has no eos or makes no tokens of a text, or a row is too short to learn from.
    """
    texts = [text for parts in rows for text, _ in parts]
    encoded = _encode_all(tokenizer, texts)
    probe = next((parts[0][0] for parts, is_standard in zip(rows, standard, strict=True) if is_standard), None)
    bos = [] if probe is None else _bos(tokenizer, probe)
    out: list[TokenRow] = []
    for parts, is_standard, is_ended, place in zip(rows, standard, ended, places, strict=True):
        pieces = [next(encoded) for _ in parts]
        for (text, _), ids in zip(parts, pieces, strict=True):
            if not ids and (text.strip() or not is_ended):
                raise DataError(f"{place}: the tokenizer makes no tokens from {text[:40]!r}; check model.tokenizer")
        if is_ended:
            pieces[-1] = _with_eos(tokenizer, pieces[-1], place)
        start = bos if is_standard and pieces[0][: len(bos)] != bos else []
        tokens = [*start, *(i for ids in pieces for i in ids)]
        mask = [False] * len(start)
        for (_, learned), ids in zip(parts, pieces, strict=True):
            mask += [learned] * len(ids)
        mask[0] = False  # nothing precedes it
        if parts[-1][1] and True not in mask:
            raise DataError(
                f"{place}: the row is a single token, and no token precedes it to predict it from; remove the row"
            )
        out.append(_token_row(tokens, mask, num_bos=len(bos) if is_standard else 0))
    return out


def _parts(tokenizer: PreTrainedTokenizerBase, example: Example, place: str) -> list[Part]:
    if isinstance(example, Text):
        prompt: list[Part] = [] if example.prompt is None else [(example.prompt, False)]
        return [*prompt, (example.completion, True)]
    parts = render_parts(tokenizer, example, place)
    if example.finished:
        return parts
    *before, (text, learned) = parts
    eos = cast("str | None", tokenizer.eos_token)
    if not eos or not text.endswith(eos):
        raise DataError(
            f"{place}: the row is not finished, but the chat template does not end the turn with eos, so the end of "
            "the cut text cannot be located; write prompt and completion as text"
        )
    return [*before, (text.removesuffix(eos), learned)]


def _with_eos(tokenizer: PreTrainedTokenizerBase, ids: list[int], place: str) -> list[int]:
    eos = cast("int | None", tokenizer.eos_token_id)
    if eos is None:
        raise DataError(
            f"{place}: tokenizer {tokenizer.name_or_path!r} has no eos token; set its eos_token, or mark completions "
            "without an eos with finished: false"
        )
    return ids if ids and ids[-1] == eos else [*ids, eos]


def _token_row(tokens: list[int], mask: list[bool], num_bos: int) -> TokenRow:
    num_prompt = mask.index(True) if True in mask else len(mask)
    return TokenRow(np.array(tokens, dtype=np.int32), np.array(mask, dtype=np.bool_), num_prompt, num_bos)


def _bos(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text; those after it (some add eos) are ignored."""
    [bare], [full] = (_encode(tokenizer, [text], special=special) for special in (False, True))
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at]
    name = tokenizer.name_or_path
    raise DataError(f"tokenizer {name!r}: text next to special tokens is tokenised differently; use another tokenizer")


def _encode_all(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[list[int]]:
    """Yield the ids of each text, 4096 texts a call, so that calls are fast and their results stay small."""
    for at in range(0, len(texts), 4096):
        yield from _encode(tokenizer, texts[at : at + 4096], special=False)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    encoding = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
    return encoding["input_ids"]
