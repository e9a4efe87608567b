"""Whether the cluster could hold each trial, asked before the first one is launched."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from raylign.actors.layout import bundles_of, fits, layouts
from raylign.actors.placement import check_size, show
from raylign.config import RunConfig
from raylign.errors import PlacementError


def check_sizes(trials: Mapping[str, RunConfig]) -> None:
    """Raise PlacementError for the first trial that would wait for ever; trials of one shape are asked about once."""
    seen = []
    for name, config in trials.items():
        if config.placement in seen or config.placement.autoscaling:
            continue
        seen.append(config.placement)
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
                f"trial {name}: does not fit: learning and judging need {show(total)} between them, the cluster has "
                f"{show(cluster)}; lower placement.*, or add nodes"
            )
