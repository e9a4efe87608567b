"""Assign actors to bundles: arithmetic on the config, before any cluster is asked.

Disaggregated, an actor has a bundle of its own. Colocated, actor i of every role sits in bundle i, which has the CPUs of
all of them and the GPUs of the role that needs most; they take turns on these, and Ray counts a share for each.

    policy x 2, rollout x 2, reward x 1, one GPU each: disaggregated, 5 bundles; colocated, 2 and a third of a GPU each:
    bundle 0: policy 0, rollout 0, reward 0            bundle 1: policy 1, rollout 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raylign.config import RoleResources, RunConfig

Bundle = dict[str, float]  # CPU and GPU; what is 0 is left out


@dataclass(frozen=True)
class Layout:
    """Bundles of a phase, and the seats of each role in them."""

    bundles: list[Bundle]
    seats: dict[str, range]  # the bundle of each actor of a role
    gpu_shares: dict[str, float]  # GPUs that Ray counts for each actor of a role

    @property
    def total(self) -> Bundle:
        """CPUs and GPUs of all bundles together."""
        return {key: sum(bundle.get(key, 0.0) for bundle in self.bundles) for key in ("CPU", "GPU")}


def layouts(config: RunConfig) -> list[tuple[dict[str, RoleResources], Layout]]:
    """Return what the roles of each phase of a run need, and where they sit."""
    needs: list[dict[str, RoleResources]] = [
        {role: config.role_resources(role) for role in phase} for phase in config.phases
    ]
    return [(needed, lay_out(needed, config.placement.mode)) for needed in needs]


def bundles_of(config: RunConfig) -> list[Bundle]:
    """Return bundles in which every phase of the run fits."""
    return envelope([layout for _, layout in layouts(config)])


def lay_out(roles: Mapping[str, RoleResources], mode: Literal["disaggregated", "colocated"]) -> Layout:
    """Return the layout of these roles; see the module."""
    if mode == "colocated":
        return _colocated(roles)
    bundles: list[Bundle] = []
    seats = {}
    for role, needed in roles.items():
        seats[role] = range(len(bundles), len(bundles) + needed.num_actors)
        bundles += [bundle_of(needed.num_cpus, needed.num_gpus)] * needed.num_actors
    return Layout(bundles, seats, {role: needed.num_gpus for role, needed in roles.items()})


def envelope(layouts: Sequence[Layout]) -> list[Bundle]:
    """Return bundles in which each of the layouts finds seats (see `seats_in`), though not two of them at once.

    Every layout is sorted from its largest bundle to its smallest, and bundle i is as large as the largest i-th one:

        learn: {CPU 2, GPU 1}, {CPU 2, GPU 1}    evaluate: {CPU 1, GPU 1}, {CPU 4}    both: {CPU 2, GPU 1}, {CPU 4, GPU 1}
    """
    ranked = [[layout.bundles[i] for i in _ranks(layout.bundles)] for layout in layouts]
    enveloping: list[Bundle] = []
    for i in range(max(map(len, ranked))):
        of_rank = [bundles[i] for bundles in ranked if i < len(bundles)]
        largest = {key: max(bundle.get(key, 0.0) for bundle in of_rank) for key in ("CPU", "GPU")}
        enveloping.append(bundle_of(largest["CPU"], largest["GPU"]))
    return enveloping


def seats_in(bundles: Sequence[Mapping[str, float]], layout: Layout) -> list[int]:
    """Return the index in `bundles`, which are an `envelope`, that takes the place of each bundle of the layout.

    Raises:
        ValueError: the layout does not fit.
    """
    places = [0] * len(layout.bundles)
    for rank, i in enumerate(_ranks(layout.bundles)):
        if rank >= len(bundles) or not fits(layout.bundles[i], bundles[rank]):
            raise ValueError(f"bundle {layout.bundles[i]} has no place in {list(bundles)}")
        places[i] = rank
    return places


def fits(needed: Mapping[str, float], there: Mapping[str, float]) -> bool:
    """Return whether the needed CPUs and GPUs are there."""
    return all(there.get(key, 0.0) + 1e-9 >= value for key, value in needed.items())


def _ranks(bundles: Sequence[Bundle]) -> list[int]:
    """Return the indices from the largest bundle to the smallest: GPUs first."""
    return sorted(range(len(bundles)), key=lambda i: (-bundles[i].get("GPU", 0.0), -bundles[i].get("CPU", 0.0), i))


def bundle_of(num_cpus: float, num_gpus: float) -> Bundle:
    """Return the bundle of one actor."""
    return {key: value for key, value in (("CPU", num_cpus), ("GPU", num_gpus)) if value > 0}


def _colocated(roles: Mapping[str, RoleResources]) -> Layout:
    bundles: list[Bundle] = []
    shares = dict.fromkeys(roles, 0.0)
    for i in range(max(needed.num_actors for needed in roles.values())):
        here = {role: needed for role, needed in roles.items() if i < needed.num_actors}
        num_gpus = max(needed.num_gpus for needed in here.values())
        bundles.append(bundle_of(sum(needed.num_cpus for needed in here.values()), num_gpus))
        users = [role for role, needed in here.items() if needed.num_gpus > 0]
        for role in users:
            # Cut, not rounded: Ray counts in ten-thousandths, and the shares must not come to more than there is.
            share = int(num_gpus / len(users) * 10_000) / 10_000
            shares[role] = min(share, shares[role] or share)
    return Layout(bundles, {role: range(needed.num_actors) for role, needed in roles.items()}, shares)
