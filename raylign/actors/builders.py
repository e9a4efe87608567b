"""What each actor makes of itself: the plain class of its role, imported inside the actor and nowhere else.

The driver sends these functions by name. So it never imports torch, and an actor imports only what its role needs.
"""

from __future__ import annotations

from typing import Any

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


def policy_gradient(world: WorldAddress, **options: Any) -> Any:
    """The policy of PPO, GRPO, RLOO and REINFORCE++."""
    from raylign.learners.policy_gradient import PolicyGradientLearner

    return PolicyGradientLearner(world=_world(world), **options)


def online_dpo(world: WorldAddress, **options: Any) -> Any:
    from raylign.learners.online_dpo import OnlineDPOLearner

    return OnlineDPOLearner(world=_world(world), **options)


def critic(world: WorldAddress, **options: Any) -> Any:
    from raylign.learners.critic import CriticLearner

    return CriticLearner(world=_world(world), **options)


def offline(name: str, world: WorldAddress, **options: Any) -> Any:
    """The learner of an algorithm that reads a dataset, by the algorithm's name."""
    from raylign.learners.kto import KTOLearner
    from raylign.learners.preference import DPOLearner, ORPOLearner, SimPOLearner
    from raylign.learners.reward_model import RewardModelLearner
    from raylign.learners.sft import SFTLearner

    learners = {
        "sft": SFTLearner,
        "reward_model": RewardModelLearner,
        "dpo": DPOLearner,
        "simpo": SimPOLearner,
        "orpo": ORPOLearner,
        "kto": KTOLearner,
    }
    return learners[name](world=_world(world), **options)


def _world(address: WorldAddress) -> Any:
    from raylign.learners.world import World

    return World(*address)
