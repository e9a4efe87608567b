"""What a trial does in the scale test of sweeps: nothing, for a while. A file of its own, because every trial's process
imports it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ray.util.placement_group import PlacementGroup

from raylign.config import RunConfig
from raylign.tracking import Sink
from raylign.tuning import folders

SECONDS = 40.0  # that a trial "works"


def sleeps(config: RunConfig, folder: Path, group: PlacementGroup, sink: Sink) -> None:
    """A fake run: two steps that take their time and learn nothing."""
    start = time.time()
    for step in (1, 2):
        time.sleep(SECONDS / 2)
        sink.log(step, {"sft/loss": 1.0 / step})
    gpus = sum(bundle.get("GPU", 0.0) for bundle in group.bundle_specs)
    folders.write(folder / "summary.json", json.dumps({"start": start, "end": time.time(), "gpus": gpus}))
