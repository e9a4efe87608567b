"""The processes of one learner: a single one, or several that split its data, its model, or both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import init_device_mesh

from raylign.config import ShardingConfig
from raylign.models.ranks import ALONE, Ranks

_hosted: dict[str, TCPStore] = {}  # the stores that this process hosts, by address


def host_meeting(host: str) -> str:
    """Open the store where the ranks of a world meet, and return its address, `host:port`.

    The store takes its port at once: a free port that is only looked up may be taken before the ranks connect.
    """
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    address = f"{host}:{store.port}"
    _hosted[address] = store
    return address


class World:
    """A learner's group of ranks and its sums over them. With size 1 nothing is ever sent.

    Args:
        rank, size: this process's rank, and the number of ranks.
        address: result of `host_meeting`, called in the process of rank 0 or in another that outlives the world; needed
            if size > 1.
        timeout: seconds before a collective gives up on a lost rank.
    """

    def __init__(self, rank: int = 0, size: int = 1, address: str | None = None, timeout: float = 300.0) -> None:
        self.rank, self.size = rank, size
        self._alone = False  # in a process group of its own
        if size > 1:
            assert address is not None
            wait = timedelta(seconds=timeout)
            host, _, port = address.rpartition(":")
            store = _hosted.pop(address, None) or TCPStore(host, int(port), timeout=wait, wait_for_workers=False)
            dist.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=wait)

    def arrange(self, sharding: ShardingConfig, device: torch.device) -> Ranks:
        """Return this rank's position when the model is split by `sharding`; all ranks of the world must call this."""
        if not sharding.splits_model or (self.size == 1 and not sharding.cpu_offload):
            return Ranks(data_rank=self.rank, data_size=self.size)
        if self.size == 1 and not dist.is_initialized():  # one GPU whose weights wait in the host's memory
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(_backend(), store=store, rank=0, world_size=1)
            self._alone = True
        tensor = sharding.tensor_parallel
        data = self.size // tensor
        shard = (sharding.shard_size or data) if sharding.strategy == "fsdp" else 1
        mesh = init_device_mesh(
            device.type, (data // shard, shard, tensor), mesh_dim_names=("replicate", "shard", "tensor")
        )
        return Ranks(data_rank=self.rank // tensor, data_size=data, tensor_rank=self.rank % tensor, mesh=mesh)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the ranks; a rank without work contributes zeros."""
        if self.size == 1:
            return
        parameters = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for p, chunk in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = chunk.view_as(p)

    def sum_metrics(self, metrics: dict[str, float], ranks: Ranks = ALONE) -> dict[str, float]:
        """Sum metrics over the ranks; all ranks must call this, a rank without work with no metrics.

        Ranks that share the micro-batches of another rank (`tensor_rank` above 0) are not counted again.
        """
        if self.size == 1:
            return metrics
        parts: list[dict[str, float]] = [{} for _ in range(self.size)]
        dist.all_gather_object(parts, metrics if ranks.tensor_rank == 0 else {})
        sums: dict[str, float] = defaultdict(float)
        for part in parts:
            for name, value in part.items():
                sums[name] += value
        return dict(sums)

    def close(self) -> None:
        """Destroy the process group, if there is one."""
        if self.size > 1 or self._alone:
            dist.destroy_process_group()


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def is_sent_weights(world: World | None, sharding: ShardingConfig) -> bool:
    """Return whether this rank's model may start empty because rank 0 sends it its part (models/shard.py)."""
    return world is not None and world.rank > 0 and sharding.splits_model
