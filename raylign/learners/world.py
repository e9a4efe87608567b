"""The data-parallel world a learner lives in: one process, or several that sum their gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn


class World:
    """Rank and size, and the sums across ranks. With size 1 nothing is ever sent.

    Args:
        rank, size: place in the group.
        address: `host:port` of rank 0; needed when size > 1.
        timeout: seconds before a collective gives up on a lost rank.
    """

    def __init__(self, rank: int = 0, size: int = 1, address: str | None = None, timeout: float = 300.0) -> None:
        self.rank, self.size = rank, size
        if size > 1:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                init_method=f"tcp://{address}",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout),
            )

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

    def sum_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics summed over the ranks; a rank without work brings none and still takes part."""
        if self.size == 1:
            return metrics
        parts: list[dict[str, float]] = [{} for _ in range(self.size)]
        dist.all_gather_object(parts, metrics)
        sums: dict[str, float] = defaultdict(float)
        for part in parts:
            for name, value in part.items():
                sums[name] += value
        return dict(sums)

    def close(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()
