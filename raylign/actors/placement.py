"""One placement group a run: every actor has its place before the first one starts, or nothing starts."""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylign.actors.waiting import Waiter
from raylign.config import RoleResources
from raylign.errors import DeadlineError, PlacementError


class Placement:
    """Reserved bundles, by role."""

    def __init__(self, group: PlacementGroup, bundles: dict[str, range]) -> None:
        self._group = group
        self._bundles = bundles

    def slots(self, role: str) -> list[PlacementGroupSchedulingStrategy]:
        """Where the actors of a role go, one entry each."""
        return [
            PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=i) for i in self._bundles[role]
        ]

    def release(self) -> None:
        """Give the bundles back; actors still in them are killed by Ray."""
        remove_placement_group(self._group)


def reserve(roles: Mapping[str, RoleResources], strategy: str, timeout: float, waiter: Waiter) -> Placement:
    """Reserve a bundle for every actor of every role.

    Raises:
        PlacementError: the cluster cannot hold them, or does not within `timeout` seconds; the message names the
            roles, what they need and what the cluster has.
    """
    bundles: list[dict[str, float]] = []
    ranges: dict[str, range] = {}
    for role, resources in roles.items():
        ranges[role] = range(len(bundles), len(bundles) + resources.num_actors)
        bundles += [_bundle(resources)] * resources.num_actors
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    too_large = [
        f"placement.{role} (each actor {_show(_bundle(resources))})"
        for role, resources in roles.items()
        if not any(_fits(_bundle(resources), node) for node in nodes)
    ]
    total = {key: sum(bundle.get(key, 0.0) for bundle in bundles) for key in ("CPU", "GPU")}
    cluster = ray.cluster_resources()
    if too_large or not _fits(total, cluster):
        what = ", ".join(too_large) or ", ".join(
            f"placement.{role} ({resources.num_actors} x {_show(_bundle(resources))})"
            for role, resources in roles.items()
        )
        raise PlacementError(
            f"{what}: does not fit: the run needs {_show(total)} in all, the cluster has {_show(cluster)} on "
            f"{len(nodes)} node(s); lower num_actors, num_cpus or num_gpus there, or add nodes"
        )
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        raise PlacementError(
            f"placement.strategy: STRICT_SPREAD puts every actor on its own node, but there are {len(bundles)} actors "
            f"for {len(nodes)} node(s); set it to SPREAD or PACK, or add nodes"
        )
    if strategy == "STRICT_PACK" and not any(_fits(total, node) for node in nodes):
        raise PlacementError(
            f"placement.strategy: STRICT_PACK puts all actors on one node, but no node has {_show(total)}; set it to "
            "PACK, or use larger nodes"
        )
    group = placement_group(bundles, strategy=strategy)
    try:
        waiter.fetch([group.ready()], timeout=timeout, waiting_for="placement", interruptible=True)
    except DeadlineError:
        remove_placement_group(group)
        raise PlacementError(
            f"placement: not reserved within limits.placement {timeout:g} s: the run needs {_show(total)}, "
            f"free are {_show(ray.available_resources())} of {_show(cluster)}; wait for other work to end, or lower "
            "placement.*"
        ) from None
    except BaseException:
        remove_placement_group(group)
        raise
    return Placement(group, ranges)


def _bundle(resources: RoleResources) -> dict[str, float]:
    return {key: value for key, value in (("CPU", resources.num_cpus), ("GPU", resources.num_gpus)) if value > 0}


def _fits(needed: Mapping[str, float], there: Mapping[str, float]) -> bool:
    return all(there.get(key, 0.0) + 1e-9 >= value for key, value in needed.items())


def _show(resources: Mapping[str, float]) -> str:
    return ", ".join(
        f"{resources.get(key, 0.0):g} {key}" for key in ("CPU", "GPU") if key == "CPU" or resources.get(key)
    )
