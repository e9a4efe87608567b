"""Which rank of a learner computes what: the grid of its ranks and the shares of a step's micro-batches."""

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
    """This rank's place among those that learn one model.

    Ranks that split the data have their own micro-batches; those that split matrices (`tensor_rank`) share theirs.

    Args:
        mesh: `[replicate, shard, tensor]` where the model is split over ranks; None where each holds all of it.
    """

    data_rank: int = 0
    data_size: int = 1
    tensor_rank: int = 0
    mesh: DeviceMesh | None = None

    @property
    def collective(self) -> bool:
        """Whether a pass needs all ranks at once: each holds a part of the model only."""
        return self.mesh is not None and self.mesh.size() > 1

    @property
    def min_groups(self) -> int:
        """Micro-batches that give every rank something to do in a pass that all of them make."""
        return self.data_size if self.collective else 1

    def share(self, groups: Sequence[Group]) -> list[tuple[Group, bool]]:
        """This rank's micro-batches, each with whether its result counts.

        Where a pass needs all ranks, all make the same number of them: a rank with one less repeats the last, smallest
        micro-batch, and what comes out does not count.

        >>> Ranks(data_rank=1, data_size=2).share(["a", "b", "c"])
        [('b', True)]
        """
        mine = [(group, True) for group in groups[self.data_rank :: self.data_size]]
        if self.collective and len(mine) < -(-len(groups) // self.data_size):
            mine.append((groups[-1], False))
        return mine

    def share_scoring(self, groups: Sequence[Group]) -> list[tuple[Group, bool]]:
        """As `share`, for passes that a rank with the whole model makes alone, on whatever rows it was sent."""
        return self.share(groups) if self.collective else [(group, True) for group in groups]

    def sum_over_data(self, array: FloatArray) -> FloatArray:
        """Elementwise sum of what the shares of all ranks made; where nothing is split, the array itself."""
        if not self.collective:
            return array
        total = torch.from_numpy(array if self.tensor_rank == 0 else 0 * array)
        dist.all_reduce(total)
        return total.numpy()


ALONE = Ranks()
