"""The actors of one role: launched together, started under a deadline, replaced when they die."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylign.actors.shells import LearnerShell, Shell
from raylign.config import RoleResources

S = TypeVar("S", bound=Shell)


class Launcher(Generic[S]):
    """Makes the actors of one role, all alike."""

    def __init__(self, shell: type[S], resources: RoleResources, num_threads: int) -> None:
        self._shell = shell
        self._options = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            # Ray must not bring back an actor with its first weights: replacing one is ours, with a sync.
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        self._environment = _environment(num_threads)

    def launch(self, slot: PlacementGroupSchedulingStrategy) -> Any:
        """A new actor in this place; it comes when the place does."""
        return ray.remote(self._shell).options(scheduling_strategy=slot, **self._options).remote(self._environment)


class ActorGroup(Generic[S]):
    """Launches `resources.num_actors` shells; nothing is loaded until `submit_start`, which needs `build`.

    Args:
        role: its name in messages.
        shell: the actor class.
        slots: where each actor goes.
        num_threads: compute threads of each actor.
    """

    def __init__(
        self,
        role: str,
        shell: type[S],
        resources: RoleResources,
        slots: list[PlacementGroupSchedulingStrategy],
        num_threads: int,
    ) -> None:
        self.role = role
        self.build: Callable[..., Any] | None = None  # makes the plain class inside the actor
        self.shell = shell
        self._launcher = Launcher(shell, resources, num_threads)
        self._slots = slots
        self.actors: list[Any] = [self._launcher.launch(slot) for slot in slots]

    def __getitem__(self, index: int) -> Any:
        """Actor `index`, counted round the group, so that shard i goes to the same actor every time."""
        return self.actors[index % len(self.actors)]

    def __len__(self) -> int:
        return len(self.actors)

    def submit_start(self) -> list[ObjectRef]:
        """Load the models in all actors."""
        return [actor.start.remote(self.build) for actor in self.actors]

    def replace(self, actor_id: str) -> ObjectRef | None:
        """If the actor of this id is ours, put a new one in its place and submit its start."""
        for i, actor in enumerate(self.actors):
            if actor._actor_id.hex() == actor_id:
                ray.kill(actor)
                self.actors[i] = self._launcher.launch(self._slots[i])
                return self.actors[i].start.remote(self.build)
        return None

    def kill(self) -> None:
        """End all actors at once."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []


class LearnerGroup(ActorGroup[LearnerShell]):
    """The ranks of one learner. Rank 0 answers for all; they live and die together."""

    def submit_join(self, address: str | None, restore: str | None, timeout: float) -> list[ObjectRef]:
        """Build the learner on every rank, in one torch.distributed world if there are several."""
        size = len(self.actors)
        return [
            actor.join.remote(self.build, (rank, size, address, timeout), restore)
            for rank, actor in enumerate(self.actors)
        ]

    def submit_all(self, method: str, *args: Any) -> list[ObjectRef]:
        """The same call on every rank."""
        return [getattr(actor, method).remote(*args) for actor in self.actors]

    def submit_collective(self, method: str, *args: Any) -> ObjectRef:
        """The same call on every rank, where each holds a part of the model; rank 0's result is the whole.

        Every rank gets its calls in the order they are submitted in, so the ranks always meet in the same call.
        """
        return self.submit_all(method, *args)[0]

    @property
    def head(self) -> Any:
        return self.actors[0]


def _environment(num_threads: int) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(num_threads),
        # Threads that wait must not spin: where actors share cores, spinning made a small model's step 3x slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
