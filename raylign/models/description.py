"""Facts that a model folder declares: tokenizer, context length, shape, stop tokens.

They are read without torch, because the driver needs no more and has to start within a second.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from raylign.config import ModelConfig
from raylign.errors import UserError, one_line

_PLAIN_FAST = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer that `model.tokenizer` names, by default the one in the model's folder."""
    return open_tokenizer(config.tokenizer or config.path, config.trust_remote_code, config.revision)


def open_tokenizer(
    source: str, trust_remote_code: bool = False, revision: str | None = None, place: str = "model.tokenizer"
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub name, of the class that its own files declare.

    AutoTokenizer looks at the model type first: next to a Qwen2 config it returns a Qwen2Tokenizer even if
    tokenizer_config.json names a plain fast tokenizer, and for a folder without tokenizer files an empty tokenizer.

    Raises:
        UserError: there is no tokenizer, or it has no vocabulary.
    """
    declared = Path(source) / "tokenizer_config.json"
    plain = declared.is_file() and json.loads(declared.read_text()).get("tokenizer_class") in _PLAIN_FAST
    if Path(source).is_dir() and not any(Path(source).glob("tokenizer*")):
        raise UserError(f"{place}: {source} has no tokenizer files; save the tokenizer there, or name another folder")
    kind = PreTrainedTokenizerFast if plain else _auto("AutoTokenizer")
    tokenizer = load_pretrained(kind, source, place, revision=revision, trust_remote_code=trust_remote_code)
    if len(tokenizer) == 0:
        raise UserError(f"{place}: the tokenizer in {source} has no vocabulary; save it again")
    return tokenizer


def context_length(config: ModelConfig) -> int:
    """Return the number of tokens that the model can attend to, prompt and completion together."""
    return int(_text_config(config, "max_position_embeddings"))


@dataclass(frozen=True)
class Shape:
    """Dimensions along which a model can be split over ranks."""

    heads: int  # attention heads
    kv_heads: int  # heads of keys and values
    layers: int
    intermediate: int | None  # width of the feed-forward layers; None if the config does not say


def shape(config: ModelConfig) -> Shape:
    """Read the model's shape from its config.json.

    Raises:
        UserError: the config has no number of attention heads.
    """
    heads = _text_config(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise UserError(
            f"model.path: {config.path} does not state a number of attention heads, which splitting the model needs; "
            "set tensor_parallel and pipeline_parallel to 1"
        )
    kv_heads = _text_config(config, "num_key_value_heads", None)
    intermediate = _text_config(config, "intermediate_size", None)
    layers = int(_text_config(config, "num_hidden_layers"))
    return Shape(heads, kv_heads or heads, layers, intermediate)


def stop_tokens(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the token ids that end a completion, sorted: the tokenizer's eos and those of the model's config."""
    declared = _text_config(config, "eos_token_id")
    ids = declared if isinstance(declared, list) else [declared]
    return tuple(sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}))


def load_pretrained(kind: Any, source: str, place: str, **options: Any) -> Any:
    """Call `kind.from_pretrained(source)` and turn its errors into one line that names `place`.

    Raises:
        UserError: the folder does not exist or cannot be loaded.
    """
    if source.startswith(("/", ".", "~")) and not Path(source).expanduser().is_dir():
        raise UserError(f"{place}: no such folder: {source}; check the path")
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError) as e:
        raise UserError(f"{place}: cannot load {source}: {one_line(e)}") from e


def _text_config(config: ModelConfig, key: str, *default: Any) -> Any:
    """Return one entry of config.json; `default` is for an entry that some kinds of model lack.

    transformers, which imports torch, is used only for entries that the file leaves to its defaults.
    """
    file = Path(config.path) / "config.json"
    if file.is_file():
        tree = json.loads(file.read_text())
        if key in tree and "text_config" not in tree and "auto_map" not in tree:
            return tree[key]
    trust = {"trust_remote_code": config.trust_remote_code}
    loaded = load_pretrained(_auto("AutoConfig"), config.path, "model.path", revision=config.revision, **trust)
    return getattr(loaded.get_text_config(), key, *default)


def _auto(name: str) -> Any:
    import transformers

    return getattr(transformers, name)
