"""`plan(config)`: what a run will need and cost, before anything is launched."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylign.actors.layout import Layout, layouts
from raylign.config import RunConfig
from raylign.errors import UserError
from raylign.planning.cost import HIGH, LOW, Cost, cost_of
from raylign.planning.devices import Device
from raylign.planning.fit import Change, Demand, changes, demands
from raylign.planning.lengths import steps_of
from raylign.planning.memory import MemoryModel
from raylign.planning.parts import RoleMemory
from raylign.planning.resolved import Located, locate


@dataclass(frozen=True)
class Plan:
    """What `raylign plan` shows."""

    config: RunConfig
    device: Device
    located: Located
    memory: dict[str, RoleMemory]  # by role, at its worst over the stages of the run
    demands: list[Demand]  # the tightest first
    changes: list[Change]  # empty where everything fits
    layouts: list[Layout]  # of each stage
    cost: Cost

    @property
    def fits(self) -> bool:
        return all(demand.fits for demand in self.demands)

    @property
    def mended(self) -> bool:
        """Whether the changes make it fit."""
        return self.fits or (bool(self.changes) and self.changes[-1].demand.fits)

    def tree(self) -> dict[str, Any]:
        """For `--json`: bytes, seconds, hours; money in the unit of the price."""
        cost = self.cost
        return {
            "name": self.config.name,
            "algorithm": self.config.algorithm.name,
            "device": self.device.name,
            "device_bytes": self.device.memory,
            "fits": self.fits,
            "memory": {
                role: {
                    "num_actors": found.num_actors,
                    "place": found.place,
                    "peak_bytes": found.peak,
                    "phases": {
                        phase.name: {part.name: part.size for part in phase.parts} | {"total": phase.total}
                        for phase in found.phases
                    },
                }
                for role, found in self.memory.items()
            },
            "demands": [
                {"where": d.where, "roles": d.roles, "needed_bytes": d.needed, "available_bytes": d.available}
                for d in self.demands
            ],
            "changes": [
                {"settings": c.settings, "cost": c.cost, "needed_bytes": c.demand.needed, "fits": c.demand.fits}
                for c in self.changes
            ],
            "placement": [
                {"bundles": layout.bundles, "seats": {role: list(seats) for role, seats in layout.seats.items()}}
                for layout in self.layouts
            ],
            "step_seconds": {
                "predicted": cost.step_seconds,
                "low": cost.step_seconds * LOW,
                "high": cost.step_seconds * HIGH,
            },
            "steps": cost.steps,
            "runs": cost.runs,
            "hours_per_run": cost.run_hours,
            "num_gpus": cost.num_gpus,
            "gpu_hours": cost.gpu_hours,
            "money": cost.money,
        }


def plan(
    config: RunConfig,
    device: Device,
    *,
    num_rows: int | None = None,
    runs: int = 1,
    price_per_gpu_hour: float | None = None,
) -> Plan:
    """Memory, fit, placement, time and cost of a run. Starts no actor and writes nothing that stays.

    Args:
        device: where it is to go; see `cluster.devices`.
        num_rows: rows of data that is not on this machine.
        runs: trials of a sweep over this config.
    Raises:
        UserError: what `raylign run` would say of the config and its files; a model that cannot be traced.
    """
    if device.is_gpu and not config.uses_gpus:
        raise UserError(
            f"placement: no role has a GPU, so the run would not use {device.name}; "
            "set placement.policy.num_gpus=1 (and rollout, critic, reference), or leave out --gpu"
        )
    if config.uses_gpus and not device.is_gpu:
        raise UserError(f"placement: roles have num_gpus, and {device.name} has no GPU; name one with --gpu")
    with tempfile.TemporaryDirectory(prefix="raylign-plan-") as scratch:
        located = locate(config, Path(scratch), num_rows)
        steps = steps_of(located.config, located.num_rows)

        def measure(changed: RunConfig) -> MemoryModel:
            return MemoryModel(changed, located.rows, steps)

        model = measure(located.config)
        stages = located.config.phases
        found = demands(model, device)
        return Plan(
            config,
            device,
            located,
            {name: model.role(name) for name in dict.fromkeys(name for stage in stages for name in stage)},
            found,
            [] if all(demand.fits for demand in found) else changes(measure, located.config, device),
            [layout for _, layout in layouts(located.config)],
            cost_of(model, device, runs, price_per_gpu_hour),
        )
