"""Load and save models and tokenizers as plain Hugging Face folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from raylign.config import ModelConfig
from raylign.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    kind = AutoTokenizer
    declared = Path(source) / "tokenizer_config.json"
    if declared.is_file():
        name = json.loads(declared.read_text()).get("tokenizer_class")
        kind = PreTrainedTokenizerFast if name in ("PreTrainedTokenizerFast", "TokenizersBackend") else AutoTokenizer
    elif Path(source).is_dir() and not any(Path(source).glob("tokenizer*")):
        raise UserError(f"{place}: {source} has no tokenizer files; save the tokenizer there, or name another folder")
    tokenizer = _load(kind, source, place, revision=revision, trust_remote_code=trust_remote_code)
    if len(tokenizer) == 0:
        raise UserError(f"{place}: the tokenizer in {source} has no vocabulary; save it again")
    return tokenizer


def context_length(config: ModelConfig) -> int:
    """Positions the model can attend to, prompt and completion together."""
    loaded = _load(AutoConfig, config.path, "model.path", revision=config.revision, **_trust(config))
    return int(loaded.get_text_config().max_position_embeddings)


def stop_tokens(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids that end a completion: the tokenizer's eos and those of the model's own configuration."""
    loaded = _load(AutoConfig, config.path, "model.path", revision=config.revision, **_trust(config))
    declared = loaded.get_text_config().eos_token_id
    ids = declared if isinstance(declared, list) else [declared]
    return tuple(sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}))


def load_causal(config: ModelConfig) -> PreTrainedModel:
    """A language model, ready to learn: master weights in `weights_dtype`."""
    return _prepare(_load_model(AutoModelForCausalLM, config), config)


def load_critic(config: ModelConfig) -> PreTrainedModel:
    """A model with one value per token. A new head starts at zero, so that the first values are 0 and not noise."""
    model, info = _load_model(AutoModelForTokenClassification, config, num_labels=1, output_loading_info=True)
    if any(name.startswith("score.") for name in info["missing_keys"]):
        for parameter in model.score.parameters():
            nn.init.zeros_(parameter)
    return _prepare(model, config)


def load_reward_model(config: ModelConfig, seed: int = 0) -> PreTrainedModel:
    """A model with one score per sequence.

    A head that the folder does not hold is drawn with variance 1 / (width + 1) (Stiennon et al. 2020, appendix).
    """
    model, info = _load_model(AutoModelForSequenceClassification, config, num_labels=1, output_loading_info=True)
    if any(name.startswith("score.") for name in info["missing_keys"]):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(model.score.weight.shape)
        weight.normal_(0, 1 / math.sqrt(weight.shape[1] + 1), generator=generator)
        with torch.no_grad():
            model.score.weight.copy_(weight)
    return _prepare(model, config)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that `from_pretrained` and vLLM load."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def export_weights(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Every weight by its Hugging Face name as numpy; bfloat16 travels as a uint16 view. Tied weights go once."""
    tied = set(model.all_tied_weights_keys)
    weights = {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            weights[name] = to_numpy(tensor.detach().to(dtype))
    return weights


def read_weights(folder: str, dtype: str) -> dict[str, np.ndarray]:
    """The weights of a saved folder in the form of `export_weights`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    return export_weights(model, DTYPES[dtype])


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.contiguous().cpu()
    # A copy, because the optimizer goes on changing the tensor's own memory.
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()


def _load_model(kind: Any, config: ModelConfig, **options: Any) -> Any:
    return _load(
        kind,
        config.path,
        "model.path",
        revision=config.revision,
        dtype=DTYPES[config.weights_dtype],
        attn_implementation=config.attention,
        **_trust(config),
        **options,
    )


def _prepare(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not config.dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            # transformers keeps attention dropout, and older models (OPT) every dropout, as plain numbers on the module.
            for name, value in list(vars(module).items()):
                if name.endswith("dropout") and isinstance(value, float):
                    setattr(module, name, 0.0)
    for parameter in model.parameters():
        # Out of the memory-mapped file into memory of torch's own: matrix products differ in their last bits with the
        # alignment of their operands, which in a file depends on the length of its header.
        parameter.data = parameter.data.clone()
    return model.train(config.dropout or config.gradient_checkpointing)


def _trust(config: ModelConfig) -> dict[str, bool]:
    return {"trust_remote_code": config.trust_remote_code}


def _load(kind: Any, source: str, place: str, **options: Any) -> Any:
    if source.startswith(("/", ".", "~")) and not Path(source).expanduser().is_dir():
        raise UserError(f"{place}: no such folder: {source}; check the path")
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0]
        raise UserError(f"{place}: cannot load {source}: {reason}") from e
