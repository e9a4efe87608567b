"""Memory and speed of devices: from data sheets, or for the CPU of this machine from a short measurement."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace

from raylign.cluster.spec import ClusterSpec
from raylign.errors import UserError
from raylign.planning.parts import GIB


@dataclass(frozen=True)
class Device:
    """A GPU or a machine: its memory and its peak rates without sparsity."""

    name: str
    memory: int  # bytes
    flops_bf16: float  # per second
    flops_fp32: float  # per second, for matrix products as torch runs them by default, without TF32
    bandwidth: float  # bytes per second
    is_gpu: bool = True

    def flops(self, dtype: str) -> float:
        """Return operations per second in this precision."""
        return self.flops_bf16 if dtype == "bfloat16" else self.flops_fp32


def _gpu(name: str, gib: int, bf16: float, fp32: float, bandwidth: float) -> Device:
    return Device(name, gib * GIB, bf16 * 1e12, fp32 * 1e12, bandwidth * 1e12)


GPUS = {
    device.name: device
    for device in (
        _gpu("b200-180gb", 180, 2250, 75, 8.0),
        _gpu("h200-141gb", 141, 989, 67, 4.8),
        _gpu("h100-80gb", 80, 989, 67, 3.35),
        _gpu("a100-80gb", 80, 312, 19.5, 2.04),
        _gpu("a100-40gb", 40, 312, 19.5, 1.56),
        _gpu("l40s-48gb", 48, 362, 91.6, 0.86),
        _gpu("a10g-24gb", 24, 70, 31.2, 0.60),
        _gpu("l4-24gb", 24, 121, 30.3, 0.30),
        _gpu("rtx4090-24gb", 24, 165, 82.6, 1.01),
        _gpu("mi300x-192gb", 192, 1307, 163, 5.3),
    )
}
"""GPUs by name, from the data sheets of their makers: GiB, TFLOP/s of dense products in bf16 and fp32, TB/s."""

_UNITS = {"": 1, "b": 1, "g": GIB, "gb": GIB, "gib": GIB, "m": 2**20, "mb": 2**20, "mib": 2**20}
_SIZED = "an unnamed GPU"
_CPU_BANDWIDTH = 20e9  # bytes per second: a copy on the machine of docs/performance.md; other machines differ by a factor of 2 at most


def gpu(name: str) -> Device:
    """Return a GPU by its name in `GPUS` or an unambiguous prefix of it (`h100`), or by its memory, with the rates of an
    A100 (`40gib`, `48000000000`).

    Raises:
        UserError: the text is neither.
    """
    matching = [device for known, device in GPUS.items() if known.startswith(name.strip().lower()) and name.strip()]
    if len(matching) == 1:
        return matching[0]
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", name.strip().lower())
    if not size or size[2] not in _UNITS or float(size[1]) <= 0:
        raise UserError(f"--gpu: {name!r} is not known; write {', '.join(GPUS)}, or its memory, e.g. 48gib")
    rates = GPUS["a100-80gb"]
    return replace(rates, name=_SIZED, memory=int(float(size[1]) * _UNITS[size[2]]))


def this_machine() -> Device:
    """Return the CPU and memory of this machine, its speed measured by matrix products for a fraction of a second."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("this machine", memory, _measured("bfloat16"), _measured("float32"), _CPU_BANDWIDTH, is_gpu=False)


def this_gpu() -> Device:
    """Return the first GPU of this machine.

    Raises:
        UserError: the machine has no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            "placement: roles have num_gpus, and this machine has no GPU; name one with --gpu, e.g. h100-80gb"
        )
    properties = torch.cuda.get_device_properties(0)
    family = [gpu for gpu in GPUS.values() if gpu.name.partition("-")[0].upper() in properties.name.upper()]
    return replace((family or [GPUS["a100-80gb"]])[0], name=properties.name, memory=properties.total_memory)


def of_cluster(spec: ClusterSpec) -> Device:
    """Return the GPU of a cluster's workers, or else of its head; a node with its memory if neither has GPUs.

    Raises:
        UserError: the spec does not name the GPU, or the name is unknown.
    """
    nodes = [node for node in (spec.workers, spec.head) if node is not None]
    node = next((node for node in nodes if node.num_gpus), None)
    if node is None:
        return replace(this_machine(), name=f"a node of {spec.name}", memory=nodes[0].memory_gib * GIB)
    if node.machine.gpu is None:
        raise UserError(f"{spec.name}: the spec does not name its GPU; set machine.gpu there, or give --gpu")
    return gpu(node.machine.gpu)


def _measured(dtype: str, size: int = 768, repeats: int = 10) -> float:
    import torch

    from raylign.models.load import DTYPES

    left, right = (torch.randn(size, size).to(DTYPES[dtype]) for _ in range(2))
    torch.matmul(left, right)  # the first product prepares kernels
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.matmul(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)  # the best: other programs that run now may not run then
