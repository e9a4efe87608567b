"""Factories that each actor runs to make the plain class of its role, imported inside the actor and nowhere else.

The driver sends these functions by name, so it never imports torch, and an actor imports only what its role needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raylign.config import (
    CriticAlgorithm,
    LoRAConfig,
    ModelConfig,
    OfflineConfig,
    OnlineConfig,
    RewardConfig,
    RolloutConfig,
    SamplingConfig,
    TaskConfig,
)
from raylign.learners.spec import LearnerSpec

if TYPE_CHECKING:
    from raylign.learners.critic import CriticLearner
    from raylign.learners.learner import Learner
    from raylign.learners.policy import OnlinePolicyLearner
    from raylign.learners.reference import ReferenceModel
    from raylign.learners.world import World
    from raylign.rewards.worker import RewardWorker
    from raylign.rollout.worker import RolloutWorker

WorldAddress = tuple[int, int, str | None, float]  # rank, size, host:port where they meet, timeout in seconds


class OfflineLearnerClass(Protocol):
    """Constructor that the learners of all offline algorithms share."""

    def __call__(self, model: ModelConfig, spec: LearnerSpec, algorithm: OfflineConfig, world: World) -> Learner: ...


def rollout(
    *,
    model_path: str,
    rollout: RolloutConfig,
    dtype: Literal["float32", "bfloat16"],
    eos_token_ids: tuple[int, ...],
    run_seed: int,
    trust_remote_code: bool,
    sleeps: bool,
    lora: LoRAConfig | None,
) -> RolloutWorker:
    """Make a rollout engine and what feeds it."""
    from raylign.rollout.worker import RolloutWorker

    return RolloutWorker(model_path, rollout, dtype, eos_token_ids, run_seed, trust_remote_code, lora, sleeps)


def reward(
    *,
    reward: RewardConfig,
    tokenizer_path: str,
    task: TaskConfig | None,
    compute_dtype: Literal["float32", "bfloat16"],
    trust_remote_code: bool,
    num_threads: int,
    place: str,
) -> RewardWorker:
    """Make a reward source; `place` is its dotted path in the config, for messages."""
    from raylign.rewards.worker import RewardWorker

    return RewardWorker(reward, tokenizer_path, task, compute_dtype, trust_remote_code, num_threads, place)


def reference(*, model: ModelConfig, micro_batch_tokens: int, temperature: float, num_threads: int) -> ReferenceModel:
    """Load the frozen reference model."""
    from raylign.learners.reference import ReferenceModel

    return ReferenceModel(model, micro_batch_tokens, temperature, num_threads)


def online_policy(
    world: WorldAddress, *, model: ModelConfig, spec: LearnerSpec, algorithm: OnlineConfig, sampling: SamplingConfig
) -> OnlinePolicyLearner[OnlineConfig]:
    """Make the learner that an online algorithm's config names."""
    learner: type[OnlinePolicyLearner[OnlineConfig]] = _class_at(algorithm.learner)
    return learner(model, spec, algorithm, sampling, _world(world))


def offline_learner(world: WorldAddress, *, model: ModelConfig, spec: LearnerSpec, algorithm: OfflineConfig) -> Learner:
    """Make the learner that an offline algorithm's config names."""
    learner: OfflineLearnerClass = _class_at(algorithm.learner)
    return learner(model=model, spec=spec, algorithm=algorithm, world=_world(world))


def critic(world: WorldAddress, *, model: ModelConfig, spec: LearnerSpec, algorithm: CriticAlgorithm) -> CriticLearner:
    """Make the value model's learner."""
    from raylign.learners.critic import CriticLearner

    return CriticLearner(model, spec, algorithm, _world(world))


def _class_at(path: str | None) -> Any:
    """Import the class at `module:Class`."""
    assert path is not None
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _world(address: WorldAddress) -> World:
    from raylign.learners.world import World

    return World(*address)
