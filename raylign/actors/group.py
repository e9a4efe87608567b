"""Actors of one role: launched together, started under a deadline, replaced when they die."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylign.actors.actor_classes import RoleActor
from raylign.config import RoleResources


class Launcher:
    """Maker of the actors of one role, all alike."""

    def __init__(self, actor_class: type[RoleActor], resources: RoleResources, num_threads: int) -> None:
        self._actor_class = actor_class
        self._options = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            # Ray must not restart an actor with its first weights: raylign replaces it, and then syncs its weights.
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        self._environment = _environment(num_threads)

    def launch(self, slot: PlacementGroupSchedulingStrategy) -> Any:
        """Return the handle of a new actor; Ray starts it once its slot is free."""
        return (
            ray.remote(self._actor_class).options(scheduling_strategy=slot, **self._options).remote(self._environment)
        )


class ActorGroup:
    """Stateless actors of one role, launched at once; `submit_start`, which needs `build`, loads their models.

    A typed subclass for each role has one method for each call that a loop may submit (see `role_groups`).

    Args:
        role: its name in messages.
        slots: the place of each actor.
        num_threads: compute threads of each actor.
    """

    actor_class: ClassVar[type[RoleActor]]

    def __init__(
        self,
        role: str,
        resources: RoleResources,
        slots: list[PlacementGroupSchedulingStrategy],
        num_threads: int,
    ) -> None:
        self.role = role
        self.build: Callable[..., object] | None = None  # makes the plain class inside the actor
        self._launcher = Launcher(self.actor_class, resources, num_threads)
        self._slots = slots
        self.actors: list[Any] = [self._launcher.launch(slot) for slot in slots]

    def __getitem__(self, index: int) -> Any:
        """Return the actor of shard `index`: shards are dealt round the group, always to the same actor."""
        return self.actors[index % len(self.actors)]

    def __len__(self) -> int:
        return len(self.actors)

    def id_of(self, index: int) -> str:
        """Return the hex id of the actor of shard `index`."""
        return self[index]._actor_id.hex()

    def submit_start(self) -> list[ObjectRef]:
        """Load the models in all actors."""
        return [actor.start.remote(self.build) for actor in self.actors]

    def replace(self, actor_id: str) -> ObjectRef | None:
        """Launch a successor of the actor with this id and submit its start; None if the group has no such actor."""
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


class LearnerGroup(ActorGroup):
    """Ranks of one learner. Rank 0 answers for all; they live and die together.

    Args:
        splits_model: each rank holds a part of the model, so all of them take part in every forward pass.
    """

    def __init__(
        self,
        role: str,
        resources: RoleResources,
        slots: list[PlacementGroupSchedulingStrategy],
        num_threads: int,
        splits_model: bool = False,
    ) -> None:
        super().__init__(role, resources, slots, num_threads)
        self._splits_model = splits_model

    def submit_address(self) -> ObjectRef:
        """Let rank 0 choose the host:port at which the ranks meet."""
        return self.actors[0].host_meeting.remote()

    def submit_join(self, address: str | None, restore: str | None, timeout: float) -> list[ObjectRef]:
        """Build the learner on every rank, in one torch.distributed world if there are several."""
        size = len(self.actors)
        return [
            actor.join.remote(self.build, (rank, size, address, timeout), restore)
            for rank, actor in enumerate(self.actors)
        ]

    def submit_save(self, folder: str) -> list[ObjectRef]:
        """Write the model and the learner's state into a folder of a commit."""
        return [actor.save.remote(folder) for actor in self.actors]

    def submit_export_merged(self, folder: str) -> list[ObjectRef]:
        """Write the base model with its adapter merged into it."""
        return [actor.export_merged.remote(folder) for actor in self.actors]

    def submit_pop_metrics(self) -> ObjectRef:
        """Return what rank 0 counted since the last call."""
        return self.actors[0].pop_metrics.remote()

    def submit_sleep(self) -> list[ObjectRef]:
        """Move every rank's memory off its GPU."""
        return [actor.sleep.remote() for actor in self.actors]

    def submit_wake(self, others_asleep: Sequence[ObjectRef]) -> None:
        """Move it back once the others are asleep (see `SleepingActor.wake`)."""
        for actor in self.actors:
            actor.wake.remote(*others_asleep)

    def _ranks_for(self, index: int) -> list[Any]:
        """Return the ranks that must be called for one result, which the first of them returns.

        All ranks where each holds a part of the model, else one after the other in turn. A rank executes its calls in
        the order in which they were submitted, so ranks that share a model always meet in the same call.
        """
        return self.actors if self._splits_model else [self[index]]


def _environment(num_threads: int) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(num_threads),
        # Waiting threads must not spin: where actors share cores, spinning made a small model's step 3x slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
