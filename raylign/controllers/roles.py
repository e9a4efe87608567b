"""From a config to its actors: which roles it needs, what each one builds, how many threads it gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray import ObjectRef

from raylign.actors import builders
from raylign.actors.fleet import RolloutFleet
from raylign.actors.group import ActorGroup, LearnerGroup
from raylign.actors.placement import Placement, place_in, reserve
from raylign.actors.shells import (
    CriticShell,
    OfflineShell,
    OnlinePolicyShell,
    ReferenceShell,
    RewardShell,
    RolloutShell,
)
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
from raylign.controllers.commits import Commit
from raylign.controllers.context import Run
from raylign.controllers.pool import ActorPool
from raylign.data.batching import default_pass_tokens
from raylign.learners.spec import LearnerSpec
from raylign.models.description import load_tokenizer, stop_tokens


@dataclass
class Roles:
    """The actor groups of a run, in one placement: `with launch(...) as roles`.

    At the end they are killed, or given to the run's pool if all went well.
    """

    placement: Placement
    groups: dict[str, Any]
    pool: ActorPool | None = None
    resources: dict[str, tuple[RoleResources, int]] = field(default_factory=dict)  # and threads, by role
    mode: str = "disaggregated"
    since: dict[str, float] = field(default_factory=dict)  # wall seconds of the run at which a role was taken

    def __getitem__(self, role: str) -> Any:
        return self.groups[role]

    def __contains__(self, role: str) -> bool:
        return role in self.groups

    def __enter__(self) -> Roles:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.pool and error is None:
            kept = {name: group.shell for name, group in self.groups.items()}
            self.pool.give(_key(kept, self.resources, self.mode), self)
        else:
            self.kill()

    @property
    def take_turns(self) -> bool:
        """Whether engines and learners sleep while the others work."""
        return self.mode == "colocated" and "rollout" in self.groups and "policy" in self.groups

    def pop_metrics(self) -> list[ObjectRef]:
        return [actor.pop_metrics.remote() for group in self.groups.values() for actor in group.actors]

    def dismiss(self, role: str) -> None:
        """End the actors of a role that is not needed any more."""
        self.groups.pop(role).kill()

    def kill(self) -> None:
        for group in self.groups.values():
            group.kill()
        self.placement.release()


def launch(run: Run, names: Sequence[str], total_steps: int = 0, commit: Commit | None = None) -> Roles:
    """Place and start the named roles, in actors of the run's pool if it has them.

    Args:
        total_steps: optimizer steps of the whole run, for the learning-rate schedules.
        commit: what the learners take up.
    Raises:
        PlacementError, DeadlineError, or what a role raised while it loaded.
    """
    config = run.config
    resources = {}
    for name in names:
        needed = config.role_resources(name)
        resources[name] = (needed, needed.num_threads or _threads(name, names))
    # A resumed run had its actors from the beginning; what is counted already is not counted again.
    since = {name: run.totals.get(f"held/train/{name}", 0.0) if commit else run.wall() for name in names}
    pool = run.pool if _reusable(config, resources) else None
    made = {name: _build(config, name, commit, total_steps, threads) for name, (_, threads) in resources.items()}
    shells = {name: shell for name, (_, shell, _) in made.items()}
    kept = pool and pool.take(_key(shells, resources, config.placement.mode))
    roles = kept if isinstance(kept, Roles) else _place(run, pool, resources)
    roles.since = since
    try:
        run.view.status("starting " + ", ".join(names))
        with run.stage("start"):
            for name, (kind, shell, build) in made.items():
                if kept is None:
                    needed, threads = resources[name]
                    needed = needed.model_copy(update={"num_gpus": roles.placement.gpu_share(name)})
                    roles.groups[name] = kind(name, shell, needed, roles.placement.slots(name), threads)
                roles.groups[name].build = build
            _start(run, roles, commit)
    except BaseException:
        roles.kill()
        raise
    return roles


def _place(run: Run, pool: ActorPool | None, resources: dict[str, tuple[RoleResources, int]]) -> Roles:
    run.view.status("placing actors")
    if run.pool:
        run.pool.close()  # what it keeps holds resources
    needed = {name: of_role for name, (of_role, _) in resources.items()}
    wanted = run.config.placement
    if run.group:
        placement = place_in(run.group, needed, wanted)
    else:
        placement = reserve(needed, wanted, run.config.limits.placement, run.waiter)
    return Roles(placement, {}, pool, resources, wanted.mode)


def _reusable(config: RunConfig, resources: dict[str, tuple[RoleResources, int]]) -> bool:
    """Whether other models can be built in these processes: not after vLLM or torch.distributed, which set up a process
    once."""
    alone = all(needed.num_actors == 1 for needed, _ in resources.values())
    kept = config.rollout.engine_traits.reusable_in_process and config.rollout.elastic is None
    return alone and ("rollout" not in resources or kept)


def _key(shells: dict[str, type], resources: dict[str, tuple[RoleResources, int]], mode: str) -> str:
    """Actors with an equal key can serve the same run: their classes, resources and threads, role by role."""
    return mode + repr(sorted((name, shell.__name__, *resources[name]) for name, shell in shells.items()))


def _start(run: Run, roles: Roles, commit: Commit | None) -> None:
    limits = run.config.limits
    addresses: dict[str, str | None] = {}
    for name, group in roles.groups.items():
        if isinstance(group, LearnerGroup) and len(group) > 1:
            (addresses[name],) = run.waiter.fetch(
                [group.head.host_meeting.remote()],
                timeout=limits.start,
                waiting_for=f"{name}: start",
                interruptible=True,
            )
    # An engine measures how much of its GPU is free, so one that shares it comes first, and sleeps.
    together = [name for name in roles.groups if name != "rollout" or not roles.take_turns]
    turns = [["rollout"], together] if roles.take_turns else [together]
    for names in turns:
        started = []
        for name in names:
            group = roles[name]
            if isinstance(group, LearnerGroup):
                started += group.submit_join(addresses.get(name), commit and commit.role(name), limits.update)
            else:
                started += group.submit_start()
        waiting_for = f"start of {', '.join(names)} (limits.start)"
        run.waiter.fetch(started, timeout=limits.start, waiting_for=waiting_for, interruptible=True)
        if roles.take_turns and "rollout" in names:
            asleep = [engine.sleep.remote() for engine in roles["rollout"].actors]
            run.waiter.fetch(asleep, timeout=limits.start, waiting_for="rollout: sleep (limits.start)")


def _build(
    config: RunConfig, name: str, commit: Commit | None, total_steps: int, threads: int
) -> tuple[Any, Any, partial[Any]]:
    """Group class, actor class, and what the actor builds."""
    algorithm = config.algorithm
    temperature = config.rollout.sampling.temperature
    match name:
        case "policy":
            assert isinstance(algorithm, OnlineConfig | OfflineConfig)
            build = partial(
                builders.policy,
                model=_resumed(config.model, commit, name),
                spec=_spec(config, algorithm.optimizer, total_steps, config.seed, threads),
                algorithm=algorithm,
            )
            if isinstance(algorithm, OnlineConfig):
                return LearnerGroup, OnlinePolicyShell, partial(build, sampling=config.rollout.sampling)
            return LearnerGroup, OfflineShell, build
        case "critic":
            assert isinstance(algorithm, CriticAlgorithm)
            start = config.model.model_copy(update={"path": algorithm.critic.path or config.model.path})
            build = partial(
                builders.critic,
                model=_resumed(start, commit, name),
                spec=_spec(config, algorithm.critic.optimizer, total_steps, config.seed + 1, threads),
                algorithm=algorithm,
            )
            return LearnerGroup, CriticShell, build
        case "reference":
            build = partial(
                builders.reference,
                model=config.reference or config.model,
                micro_batch_tokens=_micro_batch_tokens(config, config.placement.reference),
                temperature=temperature,
                num_threads=threads,
            )
            return ActorGroup, ReferenceShell, build
        case "reward":
            return ActorGroup, RewardShell, _reward(config, config.reward, "reward", threads)
        case "evaluator":
            return ActorGroup, RewardShell, _reward(config, config.evaluation_reward, "evaluation.reward", threads)
        case "rollout":
            build = partial(
                builders.rollout,
                model_path=config.model.path,
                rollout=config.rollout,
                dtype=config.rollout_dtype,
                eos_token_ids=stop_tokens(config.model, load_tokenizer(config.model)),
                run_seed=config.seed,
                trust_remote_code=config.model.trust_remote_code,
                sleeps=config.placement.mode == "colocated" and isinstance(algorithm, OnlineConfig),
                lora=config.model.lora
                if isinstance(algorithm, OnlineConfig)
                else None,  # others load whole models, or none
            )
            return partial(RolloutFleet, rollout=config.rollout), RolloutShell, build
    raise ValueError(name)


def _reward(config: RunConfig, reward: RewardConfig | None, place: str, threads: int) -> partial[Any]:
    assert reward is not None
    return partial(
        builders.reward,
        reward=reward,
        tokenizer_path=config.model.tokenizer or config.model.path,
        task=config.task,
        compute_dtype=config.model.compute_dtype,
        trust_remote_code=config.model.trust_remote_code,
        num_threads=threads,
        place=place,
    )


def _resumed(model: ModelConfig, commit: Commit | None, role: str) -> ModelConfig:
    """The start model, or where a commit has this role's weights (and tokenizer).

    An adapter stays on the start model: the learner takes it up from the commit.
    """
    if commit is None or model.lora:
        return model
    return model.model_copy(update={"path": commit.role(role), "tokenizer": None, "revision": None})


def _spec(config: RunConfig, optimizer: OptimizerConfig, total_steps: int, seed: int, threads: int) -> LearnerSpec:
    return LearnerSpec(
        optimizer=optimizer,
        total_steps=total_steps,
        micro_batch_tokens=_micro_batch_tokens(config, config.placement.policy),
        compute_dtype=config.model.compute_dtype,
        seed=seed,
        max_skipped_steps=config.limits.max_skipped_steps,
        num_threads=threads,
        sharding=config.learner.sharding,
    )


def _micro_batch_tokens(config: RunConfig, resources: RoleResources) -> int:
    return config.learner.micro_batch_tokens or default_pass_tokens(resources.num_gpus > 0)


def _threads(name: str, names: Sequence[str]) -> int:
    """Learners that work at the same time share the node's cores; vLLM is fastest on CPU with one thread."""
    if name == "rollout":
        return 1
    return max(1, (os.cpu_count() or 1) // (2 if "critic" in names else 1))
