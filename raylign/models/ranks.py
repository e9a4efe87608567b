"""Division of work between the ranks of a learner: their grid, and each rank's share of a step's micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from raylign.types import FloatArray

Group = TypeVar("Group")


@dataclass(frozen=True)
class Ranks:
    """Position of this rank among the ranks that train one model.

    Ranks that split the data have their own micro-batches; ranks that split matrices (`tensor_rank`) share them.

    Args:
        mesh: `[replicate, shard, tensor]` if the model is split over ranks; None if each rank holds all of it.
    """

    data_rank: int = 0
    data_size: int = 1
    tensor_rank: int = 0
    mesh: DeviceMesh | None = None

    @property
    def collective(self) -> bool:
        """True if a pass needs all ranks at once, because each holds only a part of the model."""
        return self.mesh is not None and self.mesh.size() > 1

    @property
    def min_groups(self) -> int:
        """Smallest number of micro-batches that gives every rank work in a pass that needs all of them."""
        return self.data_size if self.collective else 1

    def share(self, groups: Sequence[Group]) -> list[tuple[Group, bool]]:
        """Return this rank's micro-batches, each with True if its result counts.

        If a pass needs all ranks, all must make the same number of passes: a rank with one micro-batch fewer repeats
        the last, smallest micro-batch, and its result does not count.

        >>> Ranks(data_rank=1, data_size=2).share(["a", "b", "c"])
        [('b', True)]
        """
        mine = [(group, True) for group in groups[self.data_rank :: self.data_size]]
        if self.collective and len(mine) < -(-len(groups) // self.data_size):
            mine.append((groups[-1], False))
        return mine

    def share_scoring(self, groups: Sequence[Group]) -> list[tuple[Group, bool]]:
        """Return this rank's micro-batches of a pass without learning: all of them if it holds the whole model."""
        return self.share(groups) if self.collective else [(group, True) for group in groups]

    def sum_over_data(self, array: FloatArray) -> FloatArray:
        """Sum an array over the shares of all ranks, elementwise; return it unchanged if the model is not split."""
        if not self.collective:
            return array
        total = torch.from_numpy(array if self.tensor_rank == 0 else 0 * array)
        dist.all_reduce(total)
        return total.numpy()


ALONE = Ranks()
