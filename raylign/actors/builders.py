"""What each actor makes of itself: the plain class of its role, imported inside the actor and nowhere else.

The driver sends these functions by name. So it never imports torch, and an actor imports only what its role needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from raylign.config import OfflineConfig, OnlineConfig

WorldAddress = tuple[int, int, str | None, float]  # rank, size, host:port where they meet, timeout in seconds


def rollout(**options: Any) -> Any:
    from raylign.rollout.worker import RolloutWorker

    return RolloutWorker(**options)


def reward(**options: Any) -> Any:
    from raylign.rewards.worker import RewardWorker

    return RewardWorker(**options)


def reference(**options: Any) -> Any:
    from raylign.learners.reference import ReferenceModel

    return ReferenceModel(**options)


def policy(world: WorldAddress, *, algorithm: OnlineConfig | OfflineConfig, **options: Any) -> Any:
    """The learner that the algorithm's config names."""
    assert algorithm.learner is not None
    module, _, name = algorithm.learner.partition(":")
    return getattr(import_module(module), name)(world=_world(world), algorithm=algorithm, **options)


def critic(world: WorldAddress, **options: Any) -> Any:
    from raylign.learners.critic import CriticLearner

    return CriticLearner(world=_world(world), **options)


def _world(address: WorldAddress) -> Any:
    from raylign.learners.world import World

    return World(*address)
