"""What the actors of each role build from the config: one small function for each role, and their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from raylign.actors import factories
from raylign.config import (
    CriticAlgorithm,
    ModelConfig,
    OfflineConfig,
    OnlineConfig,
    OptimizerConfig,
    RewardConfig,
    RoleResources,
    RunConfig,
)
from raylign.data.batching import default_pass_tokens
from raylign.learners.spec import LearnerSpec
from raylign.models.description import load_tokenizer, stop_tokens
from raylign.storage.commits import Commit

Build = Callable[..., object]  # runs inside an actor; a learner's also takes its `world`


@dataclass(frozen=True)
class BuildInputs:
    """Everything that the models of a role follow from."""

    config: RunConfig
    commit: Commit | None  # what the learners continue from
    total_steps: int  # optimizer steps of the whole run, for the learning-rate schedules
    num_threads: int  # of each actor of the role

    def resumed(self, model: ModelConfig, role: str) -> ModelConfig:
        """Return the start model, or where the commit has this role's weights (and tokenizer).

        An adapter stays on the start model: the learner loads it from the commit.
        """
        if self.commit is None or model.lora:
            return model
        return model.model_copy(update={"path": self.commit.role(role), "tokenizer": None, "revision": None})

    def learner_spec(self, optimizer: OptimizerConfig, seed: int) -> LearnerSpec:
        """Return how a learner optimises, apart from its loss."""
        config = self.config
        return LearnerSpec(
            optimizer=optimizer,
            total_steps=self.total_steps,
            micro_batch_tokens=self.micro_batch_tokens(config.placement.policy),
            compute_dtype=config.model.compute_dtype,
            seed=seed,
            max_skipped_steps=config.limits.max_skipped_steps,
            num_threads=self.num_threads,
            sharding=config.learner.sharding,
        )

    def micro_batch_tokens(self, resources: RoleResources) -> int:
        """Return the padded tokens of one forward pass on these resources."""
        return self.config.learner.micro_batch_tokens or default_pass_tokens(resources.num_gpus > 0)


def policy(inputs: BuildInputs) -> Build:
    """Build the learner that the algorithm's config names."""
    config, algorithm = inputs.config, inputs.config.algorithm
    assert isinstance(algorithm, OnlineConfig | OfflineConfig)
    model = inputs.resumed(config.model, "policy")
    spec = inputs.learner_spec(algorithm.optimizer, config.seed)
    if isinstance(algorithm, OnlineConfig):  # its samples are scored at the temperature that they were drawn with
        sampling = config.rollout.sampling
        return partial(factories.online_policy, model=model, spec=spec, algorithm=algorithm, sampling=sampling)
    return partial(factories.offline_learner, model=model, spec=spec, algorithm=algorithm)


def critic(inputs: BuildInputs) -> Build:
    """Build the value model that learns beside the policy."""
    config, algorithm = inputs.config, inputs.config.algorithm
    assert isinstance(algorithm, CriticAlgorithm)
    start = config.model.model_copy(update={"path": algorithm.critic.path or config.model.path})
    return partial(
        factories.critic,
        model=inputs.resumed(start, "critic"),
        spec=inputs.learner_spec(algorithm.critic.optimizer, config.seed + 1),
        algorithm=algorithm,
    )


def reference(inputs: BuildInputs) -> Build:
    """Build the frozen reference: the model of the config's `reference`, else the start model."""
    config = inputs.config
    return partial(
        factories.reference,
        model=config.reference or config.model,
        micro_batch_tokens=inputs.micro_batch_tokens(config.placement.reference),
        temperature=config.rollout.sampling.temperature,
        num_threads=inputs.num_threads,
    )


def reward(inputs: BuildInputs) -> Build:
    """Build the reward source that the run learns from, or collects with."""
    return _reward_source(inputs, inputs.config.reward, "reward")


def evaluator(inputs: BuildInputs) -> Build:
    """Build the reward source that scores held-out completions."""
    return _reward_source(inputs, inputs.config.evaluation_reward, "evaluation.reward")


def rollout(inputs: BuildInputs) -> Build:
    """Build a rollout engine with the start model; its weights are synced later."""
    config = inputs.config
    is_online = isinstance(config.algorithm, OnlineConfig)
    return partial(
        factories.rollout,
        model_path=config.model.path,
        rollout=config.rollout,
        dtype=config.rollout_dtype,
        eos_token_ids=stop_tokens(config.model, load_tokenizer(config.model)),
        run_seed=config.seed,
        trust_remote_code=config.model.trust_remote_code,
        sleeps=config.placement.mode == "colocated" and is_online,
        lora=config.model.lora if is_online else None,  # offline runs load whole models here, collect runs none
    )


BUILDS: Mapping[str, Callable[[BuildInputs], Build]] = {
    "policy": policy,
    "critic": critic,
    "reference": reference,
    "reward": reward,
    "evaluator": evaluator,
    "rollout": rollout,
}


def _reward_source(inputs: BuildInputs, source: RewardConfig | None, place: str) -> Build:
    config = inputs.config
    assert source is not None
    return partial(
        factories.reward,
        reward=source,
        tokenizer_path=config.model.tokenizer or config.model.path,
        task=config.task,
        compute_dtype=config.model.compute_dtype,
        trust_remote_code=config.model.trust_remote_code,
        num_threads=inputs.num_threads,
        place=place,
    )
