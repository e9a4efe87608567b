"""State of a learner besides its weights, saved as safetensors: AdamW's moments and the random state."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

_WHOLE = "optimizer.safetensors"  # moments of a model that one rank holds
_PARTS = "optimizer"  # folder of the moments of a split model: a file for each rank, with the place of every piece


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups: weight decay on matrices only, and one mesh a group, which a fused step needs."""
    groups: dict[Any, list[nn.Parameter]] = {(True, None): [], (False, None): []}
    for parameter in parameters:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault((parameter.ndim >= 2, mesh), []).append(parameter)
    return [
        {"params": members, "weight_decay": weight_decay if is_matrix else 0.0}
        for (is_matrix, _), members in groups.items()
    ]


def save_moments(
    folder: Path, optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], rank: int, split: bool
) -> None:
    """Write the moments by `key/parameter`; by all ranks if the model is split, else by rank 0 alone."""
    moments: dict[str, Tensor] = {}
    for name, parameter in named.items():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            moments[f"{key}/{name}"] = tensor.contiguous()
    if not split:
        if rank == 0:
            save_file(moments, folder / _WHOLE)
    elif moments:
        save(moments, storage_writer=HuggingFaceStorageWriter(str(folder / _PARTS), save_distributed=True))


def load_moments(folder: Path, optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> None:
    """Load the moments that `save_moments` wrote into the optimizer; each rank reads only its own slices."""
    if (folder / _WHOLE).is_file() and not any(isinstance(p, DTensor) for p in named.values()):
        saved = load_file(folder / _WHOLE)
    else:
        saved = _read_slices(folder / _PARTS if (folder / _PARTS).is_dir() else folder, named)
    moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in saved.items():
        key, _, parameter = name.partition("/")
        # The step count goes to the device too: fused AdamW reads it there. Copied, like the weights on loading.
        moments[parameter][key] = tensor.to(named[parameter].device, copy=True)
    for name, values in moments.items():
        optimizer.state[named[name]] = values


def save_random(folder: Path, rank: int, shuffle: torch.Generator, device: torch.device) -> None:
    """Write the random state of data-parallel rank `rank`."""
    random = {"torch": torch.get_rng_state(), "shuffle": shuffle.get_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    save_file(random, folder / f"random-{rank}.safetensors")


def load_random(folder: Path, rank: int, shuffle: torch.Generator, device: torch.device) -> None:
    """Restore the random state of data-parallel rank `rank`.

    A rank that the saved world did not have takes rank 0's order of samples, which all ranks share, and draws its other
    random numbers from rank 0's state and its own number: a resume with more ranks is repeatable, and no two ranks are
    alike. If no state was saved, as in a commit copied from another run, the initial seed stays in effect.
    """
    file, first = folder / f"random-{rank}.safetensors", folder / "random-0.safetensors"
    if not first.is_file():
        return
    random = load_file(file if file.is_file() else first)
    shuffle.set_state(random["shuffle"])
    if file.is_file():
        torch.set_rng_state(random["torch"])
        if device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], device)
    else:
        words = np.random.SeedSequence([rank, *random["torch"].numpy()]).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def _read_slices(folder: Path, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Read this rank's slices of all moments from a folder, which has full moments or the parts of all ranks."""
    saved = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    slices: dict[str, Any] = {}
    for name in saved:
        key, _, parameter = name.partition("/")
        if parameter in named:  # not the random states, which may be in the same folder
            like = named[parameter].detach()
            slices[name] = (
                torch.zeros(()) if key == "step" else torch.zeros_like(like, memory_format=torch.contiguous_format)
            )
    with warnings.catch_warnings():
        # Each rank reads alone, because its slices decide what it needs. torch would warn about that each time.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(slices, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return slices
