"""What a trial does in the scale test of sweeps: nothing, for a while. A file of its own, because every trial's process
imports it."""

from __future__ import annotations

import time
from pathlib import Path

from ray.util.placement_group import PlacementGroup

from raylign.config import RunConfig
from raylign.storage.run_folder import RunFolder
from raylign.tracking import Sink

SHORTEST, LONGEST = 25, 55  # seconds that a trial "works"; not all end, and begin, at the same time


def sleeps(config: RunConfig, folder: Path, group: PlacementGroup, sink: Sink) -> None:
    """A fake run: two steps that take their time and learn nothing."""
    start, seconds = time.time(), SHORTEST + int(config.name) * 7 % (LONGEST - SHORTEST + 1)
    for step in (1, 2):
        time.sleep(seconds / 2)
        sink.log(step, {"sft/loss": 1.0 / step})
    gpus = sum(bundle.get("GPU", 0.0) for bundle in group.bundle_specs)
    RunFolder(folder).write_summary({"start": start, "end": time.time(), "gpus": gpus})
