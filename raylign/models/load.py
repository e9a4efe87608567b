"""Load and save models as plain Hugging Face folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from raylign.config import ModelConfig
from raylign.models.description import load_pretrained

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_causal(config: ModelConfig) -> PreTrainedModel:
    """A language model, ready to learn: master weights in `weights_dtype`."""
    return _prepare(_load_model(AutoModelForCausalLM, config), config)


def load_critic(config: ModelConfig) -> PreTrainedModel:
    """A model with one value per token: the shape of a reward model, whose head is read at every token.

    A new head starts at zero, so that the first values are 0 and not noise.
    """
    model, info = _load_model(AutoModelForSequenceClassification, config, num_labels=1, output_loading_info=True)
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
    return load_pretrained(
        kind,
        config.path,
        "model.path",
        revision=config.revision,
        dtype=DTYPES[config.weights_dtype],
        attn_implementation=config.attention,
        trust_remote_code=config.trust_remote_code,
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
