"""Conversion of conversations to text by the chat template; the learned parts are located by rendering prefixes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from raylign.data.formats import Conversation, Message
from raylign.errors import DataError, folded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = tuple[str, bool]  # text, learned


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message], place: str) -> str:
    """Render the messages, followed by the header of the next assistant turn.

    Raises:
        DataError: the tokenizer has no chat template, or the template refuses the messages.
    """
    return _render(tokenizer, messages, place, add_generation_prompt=True)


def render_parts(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, place: str) -> list[Part]:
    """Render the conversation, split into parts where learning begins and ends.

    A turn is learned from the end of its header to its eos, if the template writes one: text that a template puts after
    eos (ChatML's newline) is never sampled. For the same reason the text ends with the last learned part.

    >>> # [user: hi, assistant: hello] in ChatML
    >>> # [("<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n", False), ("hello<|im_end|>", True)]

    Raises:
        DataError: as in `render_prompt`; or the template renders early turns differently once later turns follow.
    """
    messages = conversation.messages
    full = _render(tokenizer, messages, place, add_generation_prompt=False)
    parts: list[Part] = []
    at = 0
    for i in range(conversation.num_prompt, len(messages)):
        if messages[i]["role"] != "assistant":
            continue
        before = render_prompt(tokenizer, messages[:i], place)
        through = _render(tokenizer, messages[: i + 1], place, add_generation_prompt=False)
        if not (full.startswith(through) and through.startswith(before) and at <= len(before) < len(through)):
            raise DataError(
                f"{place}: the chat template rewrites earlier messages at message {i}, so the learned tokens cannot be "
                "located; give prompt + completion rows that learn one turn, or a template that only appends"
            )
        learned = _until_eos(through[len(before) :], cast("str | None", tokenizer.eos_token))
        parts += [(full[at : len(before)], False), (learned, True)]
        at = len(before) + len(learned)
    return parts


def _until_eos(text: str, eos: str | None) -> str:
    stripped = text.rstrip()
    return stripped if eos and stripped.endswith(eos) else text


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], place: str, *, add_generation_prompt: bool
) -> str:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise DataError(
            f"{place}: the row is a conversation, but tokenizer {tokenizer.name_or_path!r} has no chat template; "
            "set model.tokenizer to a tokenizer that has one, or write the rows as plain text"
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as e:
        raise DataError(f"{place}: the chat template refuses the messages: {folded(e)}; fix their roles") from None
    return str(text)
