"""Reserve one placement group for a phase: every actor has its place before the first one starts, or none starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylign.actors.layout import Layout, bundle_of, fits, lay_out, seats_in
from raylign.actors.waiting import Waiter
from raylign.config import PlacementConfig, RoleResources
from raylign.errors import DeadlineError, PlacementError


class Placement:
    """Reserved bundles, by role.

    Args:
        group: holds the bundles.
        layout: the seats of each role.
        places: index in the group of each bundle of the layout, if the group was given and not made for it; a given
            group is never removed.
    """

    def __init__(self, group: PlacementGroup, layout: Layout, places: Sequence[int] | None = None) -> None:
        self._group = group
        self._layout = layout
        self._places = places

    def slots(self, role: str) -> list[PlacementGroupSchedulingStrategy]:
        """Return the place of each actor of a role."""
        return [
            PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=self._places[seat] if self._places else seat
            )
            for seat in self._layout.seats[role]
        ]

    def gpu_share(self, role: str) -> float:
        """Return the GPUs that Ray counts for each actor of a role; fewer than it uses if it takes turns with others."""
        return self._layout.gpu_shares[role]

    def release(self) -> None:
        """Give the bundles back; Ray kills actors that are still in them. A given group stays."""
        if self._places is None:
            remove_placement_group(self._group)


def place_in(group: PlacementGroup, roles: Mapping[str, RoleResources], wanted: PlacementConfig) -> Placement:
    """Seat every actor in a group that is reserved already, such as a Tune trial's.

    Raises:
        PlacementError: the group is not one of `layout.bundles_of` this run.
    """
    layout = lay_out(roles, wanted.mode)
    try:
        return Placement(group, layout, seats_in(group.bundle_specs, layout))
    except ValueError as e:
        raise PlacementError(f"placement: the group that this run was given is too small: {e}") from None


def reserve(roles: Mapping[str, RoleResources], wanted: PlacementConfig, timeout: float, waiter: Waiter) -> Placement:
    """Reserve a bundle for every actor of every role, or for every seat that several share.

    Args:
        wanted: mode, strategy, and whether the cluster may grow.
        timeout: seconds.
    Raises:
        PlacementError: the cluster cannot hold them, or does not within `timeout` seconds; the message names the
            roles, their needs and the resources of the cluster.
    """
    layout = lay_out(roles, wanted.mode)
    if not wanted.autoscaling:
        check_size(roles, layout, wanted.strategy)
    group = placement_group(layout.bundles, strategy=wanted.strategy)
    try:
        waiter.fetch([group.ready()], timeout=timeout, waiting_for="placement", interruptible=True)
    except DeadlineError:
        remove_placement_group(group)
        raise PlacementError(
            f"placement: not reserved within limits.placement {timeout:g} s: the run needs {show(layout.total)}, "
            f"free are {show(ray.available_resources())} of {show(ray.cluster_resources())}; wait for other work to end, or lower "
            "placement.*"
        ) from None
    except BaseException:
        remove_placement_group(group)
        raise
    return Placement(group, layout)


def check_size(roles: Mapping[str, RoleResources], layout: Layout, strategy: str) -> None:
    """Raise PlacementError if this cluster could not hold the layout even if nothing else ran on it."""
    bundles, total = layout.bundles, layout.total
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    too_large = [
        f"placement.{role} (each actor {show(bundles[seats[0]])})"
        for role, seats in layout.seats.items()
        if not any(fits(bundles[seats[0]], node) for node in nodes)
    ]
    cluster = ray.cluster_resources()
    if too_large or not fits(total, cluster):
        what = ", ".join(too_large) or ", ".join(
            f"placement.{role} ({resources.num_actors} x {show(bundle_of(resources.num_cpus, resources.num_gpus))})"
            for role, resources in roles.items()
        )
        raise PlacementError(
            f"{what}: does not fit: the run needs {show(total)} in all, the cluster has {show(cluster)} on "
            f"{len(nodes)} node(s); lower num_actors, num_cpus or num_gpus there, or add nodes"
        )
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        raise PlacementError(
            f"placement.strategy: STRICT_SPREAD puts every actor on its own node, but there are {len(bundles)} actors "
            f"for {len(nodes)} node(s); set it to SPREAD or PACK, or add nodes"
        )
    if strategy == "STRICT_PACK" and not any(fits(total, node) for node in nodes):
        raise PlacementError(
            f"placement.strategy: STRICT_PACK puts all actors on one node, but no node has {show(total)}; set it to "
            "PACK, or use larger nodes"
        )


def show(resources: Mapping[str, float]) -> str:
    """Return resources as text, such as `4 CPU, 1 GPU`."""
    return ", ".join(
        f"{resources.get(key, 0.0):g} {key}" for key in ("CPU", "GPU") if key == "CPU" or resources.get(key)
    )
