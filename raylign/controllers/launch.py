"""Place and start the roles of a phase. Only here is a role chosen by its name; the loops use the fields of `Roles`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from raylign.actors.fleet import RolloutFleet
from raylign.actors.group import ActorGroup, LearnerGroup
from raylign.actors.placement import place_in, reserve
from raylign.actors.role_groups import CriticGroup, OfflineLearnerGroup, PolicyGroup, ReferenceGroup, RewardGroup
from raylign.config import OnlineConfig, RoleResources, RunConfig
from raylign.controllers.context import Run
from raylign.controllers.pool import ActorPool
from raylign.controllers.role_builds import BUILDS, BuildInputs
from raylign.controllers.roles import Roles
from raylign.storage.commits import Commit


@dataclass(frozen=True)
class RoleNeeds:
    """Resources and compute threads of each actor of a role."""

    resources: RoleResources
    num_threads: int


def launch(run: Run, names: Sequence[str], total_steps: int = 0, commit: Commit | None = None) -> Roles:
    """Place and start the named roles, in actors of the run's pool if it has them.

    Args:
        total_steps: optimizer steps of the whole run, for the learning-rate schedules.
        commit: what the learners continue from.
    Raises:
        PlacementError, DeadlineError, or what a role raised while it loaded.
    """
    config = run.config
    needs = {name: _needs(config, name, names) for name in names}
    pool = run.options.pool if _reusable(config, needs) else None
    pool_key = partial(_pool_key, config, needs)
    kept = pool and pool.take(pool_key(names))
    roles = kept if isinstance(kept, Roles) else _place(run, pool, needs)
    roles.pool_key = pool_key
    # A resumed run had its actors from the beginning; what is counted already is not counted again.
    roles.since = {n: run.totals.get(f"reserved/train/{n}", 0.0) if commit else run.wall() for n in names}
    try:
        run.view.status("starting " + ", ".join(names))
        with run.timed("start"):
            if kept is None:
                for name, needed in needs.items():
                    _launch_role(roles, config, name, needed)
            for group in roles.groups:
                inputs = BuildInputs(config, commit, total_steps, needs[group.role].num_threads)
                group.build = BUILDS[group.role](inputs)
            _start(run, roles, names, commit)
    except BaseException:
        roles.kill()
        raise
    return roles


def _needs(config: RunConfig, name: str, names: Sequence[str]) -> RoleNeeds:
    resources = config.role_resources(name)
    return RoleNeeds(resources, resources.num_threads or _threads(name, names))


def _threads(name: str, names: Sequence[str]) -> int:
    """Learners that work at the same time share the node's cores; vLLM is fastest on CPU with one thread."""
    if name == "rollout":
        return 1
    return max(1, (os.cpu_count() or 1) // (2 if "critic" in names else 1))


def _reusable(config: RunConfig, needs: Mapping[str, RoleNeeds]) -> bool:
    """Return whether other models can be built in these processes later.

    vLLM and torch.distributed set up a process once, so not after either of them.
    """
    alone = all(needed.resources.num_actors == 1 for needed in needs.values())
    reusable_engine = config.rollout.engine_traits.reusable_in_process and config.rollout.elastic is None
    return alone and ("rollout" not in needs or reusable_engine)


def _pool_key(config: RunConfig, needs: Mapping[str, RoleNeeds], names: Sequence[str]) -> str:
    """Return what two phases have in common if the same actors, those of the named roles, can serve both."""
    kind = "online" if isinstance(config.algorithm, OnlineConfig) else "offline"
    return f"{config.placement.mode} {kind} {sorted((name, repr(needs[name])) for name in names)}"


def _place(run: Run, pool: ActorPool | None, needs: Mapping[str, RoleNeeds]) -> Roles:
    run.view.status("placing actors")
    if run.options.pool:
        run.options.pool.close()  # the actors that it keeps hold resources
    resources = {name: needed.resources for name, needed in needs.items()}
    wanted = run.config.placement
    if run.options.group:
        placement = place_in(run.options.group, resources, wanted)
    else:
        placement = reserve(resources, wanted, run.config.limits.placement, run.waiter)
    return Roles(placement, mode=wanted.mode, pool=pool)


def _launch_role(roles: Roles, config: RunConfig, name: str, needed: RoleNeeds) -> None:
    resources = needed.resources.model_copy(update={"num_gpus": roles.placement.gpu_share(name)})
    seats = (name, resources, roles.placement.slots(name), needed.num_threads)
    splits_model = config.learner.sharding.splits_model
    match name:
        case "policy" if isinstance(config.algorithm, OnlineConfig):
            roles.policy = PolicyGroup(*seats, splits_model)
        case "policy":
            roles.policy = OfflineLearnerGroup(*seats, splits_model)
        case "critic":
            roles.critic = CriticGroup(*seats, splits_model)
        case "reward":
            roles.reward = RewardGroup(*seats)
        case "rollout":
            roles.rollout = RolloutFleet(*seats, config.rollout)
        case "reference":
            roles.reference = ReferenceGroup(*seats)
        case "evaluator":
            roles.evaluator = RewardGroup(*seats)
        case _:
            raise ValueError(name)


def _start(run: Run, roles: Roles, names: Sequence[str], commit: Commit | None) -> None:
    limits = run.config.limits
    groups = sorted(roles.groups, key=lambda group: names.index(group.role))
    addresses: dict[str, str | None] = {}
    for group in groups:
        if isinstance(group, LearnerGroup) and len(group) > 1:
            (addresses[group.role],) = run.waiter.fetch(
                [group.submit_address()],
                timeout=limits.start,
                waiting_for=f"{group.role}: start",
                interruptible=True,
            )
    # An engine measures how much of its GPU is free, so one that shares it comes first, and sleeps.
    if roles.take_turns and roles.rollout is not None:
        _start_together(run, [roles.rollout], addresses, commit)
        asleep = roles.rollout.submit_sleep()
        run.waiter.fetch(asleep, timeout=limits.start, waiting_for="rollout: sleep (limits.start)")
        groups.remove(roles.rollout)
    _start_together(run, groups, addresses, commit)


def _start_together(
    run: Run, groups: list[ActorGroup | RolloutFleet], addresses: Mapping[str, str | None], commit: Commit | None
) -> None:
    limits, started = run.config.limits, []
    for group in groups:
        if isinstance(group, LearnerGroup):
            restore = commit and commit.role(group.role)
            started += group.submit_join(addresses.get(group.role), restore, limits.update)
        else:
            started += group.submit_start()
    waiting_for = f"start of {', '.join(group.role for group in groups)} (limits.start)"
    run.waiter.fetch(started, timeout=limits.start, waiting_for=waiting_for, interruptible=True)
