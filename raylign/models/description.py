"""What a model folder says about itself: tokenizer, context, stop tokens. Read without torch, so that the driver, which
needs no more, starts in a second."""

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
    """The tokenizer beside the model, or the one named by `model.tokenizer`."""
    return open_tokenizer(config.tokenizer or config.path, config.trust_remote_code, config.revision)


def open_tokenizer(
    source: str, trust_remote_code: bool = False, revision: str | None = None, place: str = "model.tokenizer"
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name, as its own files say.

    AutoTokenizer goes by the model type first: beside a Qwen2 config it returns a Qwen2Tokenizer even where
    tokenizer_config.json names a plain fast tokenizer, and for a folder without tokenizer files an empty one.
    Raises:
        UserError: there is none, or it has no vocabulary.
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
    """Positions the model can attend to, prompt and completion together."""
    return int(_text_config(config, "max_position_embeddings"))


@dataclass(frozen=True)
class Shape:
    """What can be split: attention heads, those of keys and values, layers; width of the feed-forward (None: unsaid)."""

    heads: int
    kv_heads: int
    layers: int
    intermediate: int | None


def shape(config: ModelConfig) -> Shape:
    """The model's shape, as its config.json says.

    Raises:
        UserError: it has no attention heads to speak of.
    """
    heads = _text_config(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise UserError(
            f"model.path: {config.path} names no number of attention heads, by which models are split; set "
            "tensor_parallel and pipeline_parallel to 1"
        )
    kv_heads = _text_config(config, "num_key_value_heads", None)
    intermediate = _text_config(config, "intermediate_size", None)
    layers = int(_text_config(config, "num_hidden_layers"))
    return Shape(heads, kv_heads or heads, layers, intermediate)


def stop_tokens(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids that end a completion: the tokenizer's eos and those of the model's own configuration."""
    declared = _text_config(config, "eos_token_id")
    ids = declared if isinstance(declared, list) else [declared]
    return tuple(sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}))


def load_pretrained(kind: Any, source: str, place: str, **options: Any) -> Any:
    """`kind.from_pretrained(source)`; what goes wrong becomes one line that names `place`."""
    if source.startswith(("/", ".", "~")) and not Path(source).expanduser().is_dir():
        raise UserError(f"{place}: no such folder: {source}; check the path")
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError) as e:
        raise UserError(f"{place}: cannot load {source}: {one_line(e)}") from e


def _text_config(config: ModelConfig, key: str, *default: Any) -> Any:
    """One entry of config.json; transformers, which imports torch, is asked only for what the file leaves to defaults.
    An entry that not every kind of model has takes a default."""
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
