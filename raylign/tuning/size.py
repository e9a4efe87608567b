"""Check, before any trial is launched, that the cluster could hold each of them."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from raylign.actors.layout import bundles_of, fits, layouts
from raylign.actors.placement import check_size, show
from raylign.config import RunConfig
from raylign.errors import PlacementError


def check_sizes(trials: Mapping[str, RunConfig]) -> None:
    """Check that each trial fits into the whole cluster; trials with the same placement are checked once.

    Raises:
        PlacementError: a trial would wait for ever.
    """
    checked = []
    for name, config in trials.items():
        if config.placement in checked or config.placement.autoscaling:
            continue
        checked.append(config.placement)
        try:
            for needed, layout in layouts(config):
                check_size(needed, layout, config.placement.strategy)
        except PlacementError as e:
            raise PlacementError(f"trial {name}: {e}") from None
        bundles = bundles_of(config)
        total = {key: sum(bundle.get(key, 0.0) for bundle in bundles) for key in ("CPU", "GPU")}
        cluster = ray.cluster_resources()
        if not fits(total, cluster):
            raise PlacementError(
                f"trial {name}: does not fit: training and evaluation need {show(total)} in all, the cluster has "
                f"{show(cluster)}; lower placement.*, or add nodes"
            )
