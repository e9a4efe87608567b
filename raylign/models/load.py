"""Load and save models as plain Hugging Face folders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import revert_weight_conversion

from raylign.config import ModelConfig
from raylign.models.description import load_pretrained
from raylign.models.lora import adapter_state, add_adapter, has_adapter, keep_layout, quantization
from raylign.models.shard import is_split, whole

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_causal(config: ModelConfig, seed: int = 0, empty: bool = False) -> PreTrainedModel:
    """Load a language model to train: master weights in `weights_dtype`, with a new adapter if `config.lora` is set.

    Args:
        seed: seed of the adapter.
        empty: build the structure only, on the meta device, for a rank that receives its weights from rank 0.
    """
    return _prepare(_load_model(AutoModelForCausalLM, config, empty)[0], config, seed)


def load_frozen(config: ModelConfig) -> PreTrainedModel:
    """Load the language model that learners with this config start from, frozen and in evaluation mode."""
    model, _ = _load_model(AutoModelForCausalLM, config)
    return _prepare(model, config.model_copy(update={"lora": None})).eval().requires_grad_(False)


def load_critic(config: ModelConfig, seed: int = 0, empty: bool = False) -> PreTrainedModel:
    """Load a critic: a model of the same form as a reward model, with its head read at every token.

    A new head starts at zero, so that the first values are 0 and not noise. seed and empty are as in `load_causal`.
    """
    model, missing = _load_model(AutoModelForSequenceClassification, config, empty, num_labels=1)
    if any(name.startswith("score.") for name in missing):
        for parameter in model.score.parameters():
            nn.init.zeros_(parameter)
    return _prepare(model, config, seed)


def load_reward_model(config: ModelConfig, seed: int = 0, empty: bool = False) -> PreTrainedModel:
    """Load a model with one score per sequence.

    A head that the folder lacks is drawn with variance 1 / (width + 1) (Stiennon et al. 2020, appendix). seed (of the
    head and the adapter) and empty are as in `load_causal`.
    """
    model, missing = _load_model(AutoModelForSequenceClassification, config, empty, num_labels=1)
    if any(name.startswith("score.") for name in missing):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(model.score.weight.shape)
        weight.normal_(0, 1 / math.sqrt(weight.shape[1] + 1), generator=generator)
        with torch.no_grad():
            model.score.weight.copy_(weight)
    return _prepare(model, config, seed)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a folder that `from_pretrained` and vLLM load. `weights`: the gathered weights of a split model."""
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def export_weights(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Return every weight by its name in a checkpoint, as numpy; bfloat16 is a uint16 view. Tied weights appear once.

    Every rank of a split model must call this; only rank 0 gets the weights. In memory transformers keeps the experts
    of a layer in one tensor; engines read them one by one, as in checkpoints. A model that learns an adapter returns
    only the adapter, by peft's names, because nothing else has changed.
    """
    if has_adapter(model):
        return {name: to_numpy(tensor.to(dtype)) for name, tensor in adapter_state(model).items()}
    tied = set(model.all_tied_weights_keys)
    state = {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            full = whole(tensor.to(dtype))
            if not is_split(model) or dist.get_rank() == 0:
                state[name] = full.cpu()
    return {name: to_numpy(tensor) for name, tensor in revert_weight_conversion(model, state).items()}


def read_weights(folder: str, dtype: str) -> dict[str, np.ndarray]:
    """Read the weights of a saved folder in the form of `export_weights`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    return export_weights(model, DTYPES[dtype])


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor to numpy; bfloat16 becomes uint16 of the same bits."""
    tensor = tensor.contiguous().cpu()
    # A copy, because the optimizer continues to change the tensor's own memory.
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()


def _load_model(kind: Any, config: ModelConfig, empty: bool = False, **options: Any) -> tuple[Any, list[str]]:
    """Return the model and the names of the weights that its folder lacks."""
    shape = {"dtype": DTYPES[config.weights_dtype], "attn_implementation": config.attention}
    source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    if empty:
        settings = load_pretrained(AutoConfig, config.path, "model.path", **source, **options)
        with torch.device("meta"):
            return kind.from_config(settings, trust_remote_code=config.trust_remote_code, **shape), []
    quantized = quantization(config.lora, DTYPES[config.compute_dtype])
    options |= {"output_loading_info": True, **shape, **source, **quantized}
    model, info = load_pretrained(kind, config.path, "model.path", **options)
    if quantized:
        keep_layout(model)
    return model, list(info["missing_keys"])


def _prepare(model: PreTrainedModel, config: ModelConfig, seed: int = 0) -> PreTrainedModel:
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not config.dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            # transformers keeps attention dropout, and in older models (OPT) every dropout, as a number on the module.
            for name, value in list(vars(module).items()):
                if name.endswith("dropout") and isinstance(value, float):
                    setattr(module, name, 0.0)
    for parameter in model.parameters():
        # Copied from the memory-mapped file into torch's own memory: the last bits of matrix products depend on the
        # alignment of their operands, which in a file depends on the length of its header.
        parameter.data = parameter.data.clone()
    if config.lora:
        add_adapter(model, config.lora, seed)
    adapter_dropout = config.lora is not None and config.lora.dropout > 0
    return model.train(config.dropout or config.gradient_checkpointing or adapter_dropout)
