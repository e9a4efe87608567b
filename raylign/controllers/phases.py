"""Which roles a run has at the same time: known from its config alone, before a cluster is asked."""

from __future__ import annotations

from raylign.actors.layout import Layout, envelope, lay_out
from raylign.config import ONLINE, CollectConfig, DPOConfig, KTOConfig, RoleResources, RunConfig
from raylign.config.algorithm import AlgorithmConfig
from raylign.config.roles import RewardConfig


def online_roles(config: RunConfig) -> list[str]:
    """Of the one phase of an online run."""
    algorithm = config.algorithm
    names = ["policy", *(["critic"] if algorithm.name == "ppo" else []), "reward", "rollout"]
    if algorithm.name == "online_dpo" or algorithm.kl.coef > 0:  # pyright: ignore[reportAttributeAccessIssue]
        names.append("reference")
    if config.evaluation is not None and evaluation_reward(config) != config.reward:
        names.append("evaluator")
    return names


def judge_roles(config: RunConfig) -> list[str]:
    """Of an offline run's evaluation, after its learner has left."""
    return ["rollout", "evaluator", *(["reference"] if needs_reference(config.algorithm) else [])]


def phases(config: RunConfig) -> list[list[str]]:
    """Roles that are there together, phase after phase, with everything that the run may have to do itself."""
    algorithm = config.algorithm
    if isinstance(algorithm, CollectConfig):
        return [["rollout", "reward"]]
    if algorithm.name in ONLINE:
        return [online_roles(config)]
    learning = ["policy", *(["reference"] if needs_reference(algorithm) else [])]
    judged = config.evaluation is not None and algorithm.name != "reward_model"
    return [learning, *([judge_roles(config)] if judged else [])]


def layouts(config: RunConfig) -> list[tuple[dict[str, RoleResources], Layout]]:
    """What the roles of each phase need, and where they sit."""
    found = []
    for names in phases(config):
        needed = {name: role_resources(config, name) for name in names}
        found.append((needed, lay_out(needed, config.placement.mode)))
    return found


def bundles_of(config: RunConfig) -> list[dict[str, float]]:
    """Bundles in which every phase of the run fits."""
    return envelope([layout for _, layout in layouts(config)])


def role_resources(config: RunConfig, name: str) -> RoleResources:
    """An `evaluator` scores held-out samples and is as large as a reward actor."""
    if name == "evaluator":
        return config.placement.reward.model_copy(update={"num_actors": 1})
    return getattr(config.placement, name)


def uses_gpus(config: RunConfig) -> bool:
    """Whether any role of the run is given a GPU, or a part of one."""
    return any(role_resources(config, name).num_gpus > 0 for phase in phases(config) for name in phase)


def evaluation_reward(config: RunConfig) -> RewardConfig | None:
    return (config.evaluation and config.evaluation.reward) or config.reward


def needs_reference(algorithm: AlgorithmConfig) -> bool:
    """Whether the loss reads logprobs of a frozen reference, computed before the first step."""
    return isinstance(algorithm, DPOConfig | KTOConfig)
