"""Checks of weights that an engine receives from a learner, as numpy arrays with bfloat16 as uint16."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return a read-only CPU tensor over the memory of `array`; uint16 is read as the bits of bfloat16."""
    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only, which torch cannot express; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def check_adapter(expected: Mapping[str, torch.Tensor], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError unless `arrays` have the names and shapes of the expected adapter."""
    if unknown := arrays.keys() - expected.keys():
        raise ValueError(f"weights: the adapter has no {_some(unknown)}; was it made with another model.lora?")
    if missing := expected.keys() - arrays.keys():
        raise ValueError(f"weights: {_some(missing)} missing; send the whole adapter")
    for name, array in arrays.items():
        if array.shape != expected[name].shape:
            raise ValueError(f"weights: {name} has shape {array.shape}, not {tuple(expected[name].shape)}")


def check_weights(model: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError unless `weights` are all parameters of `model` (which may be on the meta device), and no others.

    A tied parameter may appear under any or all of its names. Buffers are optional.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    known = parameters | dict(model.named_buffers())
    if unknown := weights.keys() - known.keys():
        raise ValueError(
            f"weights: the model has no parameter {_some(unknown)}; do they belong to another architecture?"
        )
    written = {id(known[name]) for name in weights}
    if missing := {name for name, parameter in parameters.items() if id(parameter) not in written}:
        raise ValueError(f"weights: {_some(missing)} missing; send the whole model")
    for name, array in weights.items():
        if array.shape != known[name].shape:
            raise ValueError(f"weights: {name} has shape {array.shape}, not {tuple(known[name].shape)}")


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the other names of each tied parameter: {"embed.weight": ("lm_head.weight",), ...}."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return {
        name: tuple(other for other in group if other != name)
        for group in groups.values()
        for name in group
        if len(group) > 1
    }


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
