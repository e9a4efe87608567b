"""Merging of an adapter into a plain model: W + (alpha / rank) B A replaces W, quantised weights in full precision.

The model in training is only read: merging in place and undoing it would change the last bits of its weights.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from raylign.models.load import save_model
from raylign.models.lora import ADAPTER
from raylign.models.shard import whole


def save_merged(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, writes: bool = True
) -> None:
    """Write a plain model with the adapter merged in, as a folder that `from_pretrained` and vLLM load.

    Args:
        writes: False on all ranks but one; every rank of a split model must call this.
    """
    merged = _skeleton(model)
    weights = _merged_state(model, merged)
    if writes:
        merged.load_state_dict(weights, assign=True)
        merged.tie_weights()
        save_model(merged, tokenizer, folder)


def merged_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights that `save_merged` writes, on the CPU."""
    return _merged_state(model, _skeleton(model))


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Build the same architecture on the meta device, without quantisation."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        skeleton = type(model)(config)
    if model.can_generate():
        skeleton.generation_config = model.generation_config
    return skeleton


@torch.no_grad()
def _merged_state(model: PreTrainedModel, plain: PreTrainedModel) -> dict[str, Tensor]:
    return {name: _merged(model, plain, name) for name in plain.state_dict()}


def _merged(model: PreTrainedModel, plain: PreTrainedModel, name: str) -> Tensor:
    """Return the plain model's tensor of a name such as `model.layers.0.self_attn.q_proj.weight`."""
    path, _, kind = name.rpartition(".")
    module: Any = model.get_submodule(path)
    layer = module if isinstance(module, LoraLayer) else None
    base: Any = layer.get_base_layer() if layer else module
    if kind != "weight":
        return whole(base.state_dict()[kind]).cpu().clone()
    weight = _full_precision(base).cpu()
    weight = weight.clone() if layer is None else (weight.float() + _delta(layer)).to(weight.dtype)
    # Conv1D stores its weight transposed; once quantised, it is a linear layer.
    transposed = isinstance(plain.get_submodule(path), Conv1D) and not isinstance(base, Conv1D)
    return weight.T.contiguous() if transposed else weight


def _full_precision(module: Any) -> Tensor:
    """Return the weight of a layer, dequantised if bitsandbytes has quantised it."""
    match type(module.weight).__name__:
        case "Params4bit":
            from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

            return dequantize_4bit(module.weight.data, module.weight.quant_state)
        case "Int8Params":
            from bitsandbytes.functional import int8_vectorwise_dequant  # pyright: ignore[reportMissingImports]

            # The first pass moves the scales from the parameter to the layer's state.
            scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
            return int8_vectorwise_dequant(module.weight.data, scales)
    return whole(module.weight)


def _delta(layer: LoraLayer) -> Tensor:
    """Return the adapter's addition to the layer's weight, on the CPU."""
    down, up = (whole(matrix.get_parameter(f"{ADAPTER}.weight")).cpu() for matrix in (layer.lora_A, layer.lora_B))
    delta = layer.scaling[ADAPTER] * (up @ down)
    return delta.T if isinstance(layer.get_base_layer(), Conv1D) else delta
