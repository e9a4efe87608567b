"""The actor groups of a run, one typed field for each role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from ray import ObjectRef

from raylign.actors.fleet import RolloutFleet
from raylign.actors.group import ActorGroup, LearnerGroup
from raylign.actors.placement import Placement
from raylign.actors.role_groups import CriticGroup, OfflineLearnerGroup, PolicyGroup, ReferenceGroup, RewardGroup
from raylign.controllers.pool import ActorPool

Group = TypeVar("Group")


@dataclass
class Roles:
    """The groups that are placed together: `with launch(...) as roles`. A role that the phase does not have is None.

    At the end the actors are killed, or given to the run's pool if all went well.
    """

    placement: Placement
    policy: PolicyGroup | OfflineLearnerGroup | None = None
    critic: CriticGroup | None = None
    reward: RewardGroup | None = None
    rollout: RolloutFleet | None = None
    reference: ReferenceGroup | None = None
    evaluator: RewardGroup | None = None  # None: the reward evaluates too
    mode: Literal["disaggregated", "colocated"] = "disaggregated"
    pool: ActorPool | None = None
    pool_key: Callable[[Sequence[str]], str] | None = None  # from the roles that are kept, for the pool
    since: dict[str, float] = field(default_factory=dict)  # wall seconds of the run when a role was reserved, by role

    def __enter__(self) -> Roles:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.pool and self.pool_key and error is None:
            self.pool.give(self.pool_key([group.role for group in self.groups]), self)
        else:
            self.kill()

    @property
    def groups(self) -> list[ActorGroup | RolloutFleet]:
        """All groups of the phase."""
        every = (self.policy, self.critic, self.reward, self.rollout, self.reference, self.evaluator)
        return [group for group in every if group is not None]

    @property
    def learners(self) -> list[LearnerGroup]:
        """Groups that keep state between steps: losing an actor of these takes the run back to its last commit."""
        return [group for group in (self.policy, self.critic) if group is not None]

    @property
    def stateless(self) -> list[ActorGroup]:
        """Groups whose actors can be replaced at once; engines can too, but the fleet does it."""
        return [group for group in (self.reward, self.reference, self.evaluator) if group is not None]

    @property
    def take_turns(self) -> bool:
        """True if engines and learners share GPUs, so that one side sleeps while the other works."""
        return self.mode == "colocated" and self.rollout is not None and self.policy is not None

    def submit_pop_metrics(self) -> list[ObjectRef]:
        """Return what every actor counted since the last call."""
        return [actor.pop_metrics.remote() for group in self.groups for actor in group.actors]

    def dismiss_reference(self) -> None:
        """End the reference actors, which the phase does not need any more."""
        if self.reference is not None:
            self.reference.kill()
            self.reference = None

    def kill(self) -> None:
        """End all actors and give back their places."""
        for group in self.groups:
            group.kill()
        self.placement.release()


def required(group: object, kind: type[Group]) -> Group:
    """Return a group that this phase always has, as its type."""
    assert isinstance(group, kind), f"{kind.__name__} was not launched"
    return group
