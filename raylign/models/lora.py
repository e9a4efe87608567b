"""Low-rank adapters (Hu et al. 2021) inside a Hugging Face model: added, exported, saved and restored.

peft's layers are injected into the model, which keeps its class and its heads. Outside the model, an adapter has the
names that peft uses in `adapter_model.safetensors`, so that peft and vLLM can read the files written here:

    model.layers.0.self_attn.q_proj.lora_A.default.weight              in the model
    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight     outside
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from raylign.config import LoRAConfig
from raylign.errors import UserError
from raylign.models.shard import whole

ADAPTER = "default"  # peft's name for the only adapter of a model
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
SCORE = "score"  # the head of critics and reward models, which is new and therefore trained in full
_PREFIX = "base_model.model."


def add_adapter(model: PreTrainedModel, config: LoRAConfig, seed: int = 0) -> None:
    """Freeze the model and add fp32 adapters to its linear layers, without changing its outputs.

    A score head stays trainable in full. Matrix A is drawn from `seed`, the same on every rank; B is zero.

    Raises:
        UserError: a target is not a linear layer of the model below its head.
    """
    targets = find_targets(model, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = LoraConfig(
            r=config.rank,
            lora_alpha=cast(int, config.alpha),  # any number works
            lora_dropout=config.dropout,
            target_modules=targets,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        inject_adapter_in_model(adapter, model, ADAPTER)
    for name, parameter in model.named_parameters():
        if name.startswith(f"{SCORE}."):
            parameter.requires_grad_(True)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def has_adapter(model: nn.Module) -> bool:
    """Return whether any layer of the model has an adapter."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


def find_targets(model: PreTrainedModel, config: LoRAConfig) -> list[str]:
    """Return the last names of the linear layers that get an adapter, sorted: ["k_proj", "o_proj", "q_proj", ...].

    Raises:
        UserError: a target is not a linear layer of the model below its head.
    """
    body = model.base_model  # without the head
    linear = {
        name.rpartition(".")[2] for name, module in body.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    if ALL_LINEAR in config.targets:
        return sorted(linear)
    for target in config.targets:
        if target not in linear:
            raise UserError(
                f"model.lora.targets: {target} is not a linear layer below the model's head; "
                f"name some of {', '.join(sorted(linear))}, or {ALL_LINEAR}"
            )
    return sorted(set(config.targets))


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters (adapters and score head) by the names that peft uses in files."""
    return {outside_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def outside_name(name: str) -> str:
    """Return the name that peft uses in files for a parameter of the model."""
    for matrix in ("lora_A", "lora_B"):
        name = name.replace(f".{matrix}.{ADAPTER}.", f".{matrix}.")
    return _PREFIX + name


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy the adapter, in full tensors, to the CPU. Every rank of a split model must call this."""
    return {name: whole(p).cpu().clone() for name, p in adapter_parameters(model).items()}


def load_adapter(model: nn.Module, folder: str) -> None:
    """Load an adapter that `save_adapter` wrote into the model.

    Raises:
        UserError: the adapter has other targets, another rank or another head.
    """
    set_adapter(model, load_file(Path(folder) / WEIGHTS), f"{folder}: the adapter")


def set_adapter(model: nn.Module, state: Mapping[str, Tensor], place: str) -> None:
    """Copy an adapter's tensors into the model's parameters.

    Args:
        state: tensors by peft's names, as `adapter_state` returns them.
        place: beginning of the error message.
    Raises:
        UserError: names or shapes differ from the model's adapter.
    """
    parameters = adapter_parameters(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if shapes != {name: tuple(p.shape) for name, p in parameters.items()}:
        raise UserError(f"{place} has other layers or another rank than model.lora; use the config that made it")
    with torch.no_grad():
        for name, parameter in parameters.items():
            tensor = state[name].to(parameter.device, parameter.dtype)
            if isinstance(parameter, DTensor):
                tensor = distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
            parameter.copy_(tensor)


def adapter_files(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, bytes]:
    """Return the files of peft's adapter folder, by name; the base model is the path it was loaded from."""
    adapter: LoraConfig = cast(Any, model).peft_config[ADAPTER]
    base = model.name_or_path or ""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(Path(base).absolute()) if Path(base).is_dir() else base,
        "r": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "lora_dropout": adapter.lora_dropout,
        "target_modules": sorted(adapter.target_modules or ()),
        "modules_to_save": [SCORE] if f"{_PREFIX}{SCORE}.weight" in state else None,
        "inference_mode": True,
    }
    return {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: save(state, metadata={"format": "pt"})}


def save_adapter(model: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    """Write the files of `adapter_files` into a folder."""
    for name, content in adapter_files(model, state).items():
        (folder / name).write_bytes(content)


def quantization(config: LoRAConfig | None, compute_dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of `from_pretrained` that load the frozen weights in 4 or 8 bits.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if config is None or config.base_quantization == "none":
        return {}
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.lora.base_quantization: {config.base_quantization} needs bitsandbytes; pip install bitsandbytes, "
            "or set none"
        )
    if config.base_quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": compute_dtype}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **nf4)}


def keep_layout(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in the first CPU pass without gradients.

    It cannot differentiate through that layout, so gradients would be wrong without any error, and it rounds to
    bfloat16.
    """
    from bitsandbytes.nn import Linear4bit  # pyright: ignore[reportMissingImports]  (not installed everywhere)

    module: Any
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
