"""`plan(config)`: memory, fit, placement, time and cost of a run, before anything is launched."""

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
from raylign.planning.lengths import count_steps
from raylign.planning.memory import MemoryModel
from raylign.planning.parts import RoleMemory
from raylign.planning.resolved import ResolvedRun, resolve_for_planning


@dataclass(frozen=True)
class Plan:
    """Memory, fit, placement, time and cost of a run, as `raylign plan` shows them."""

    config: RunConfig
    device: Device
    resolved: ResolvedRun
    memory: dict[str, RoleMemory]  # by role
    demands: list[Demand]  # the tightest first
    changes: list[Change]  # empty if everything fits
    layouts: list[Layout]  # one for each phase
    cost: Cost

    @property
    def fits(self) -> bool:
        """True if every demand fits."""
        return all(demand.fits for demand in self.demands)

    @property
    def fits_after_changes(self) -> bool:
        """True if the run fits, or would fit after all changes."""
        return self.fits or (bool(self.changes) and self.changes[-1].demand.fits)

    def tree(self) -> dict[str, Any]:
        """Return the plan for `--json`: bytes, seconds, hours; money in the unit of the price."""
        cost = self.cost
        return {
            "name": self.config.name,
            "algorithm": self.config.algorithm.name,
            "device": self.device.name,
            "device_bytes": self.device.memory,
            "fits": self.fits,
            "memory": {
                role: {
                    "num_actors": memory.num_actors,
                    "place": memory.place,
                    "peak_bytes": memory.peak,
                    "states": {
                        state.name: {part.name: part.size for part in state.parts} | {"total": state.total}
                        for state in memory.states
                    },
                }
                for role, memory in self.memory.items()
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
    """Return the plan of a run. Starts no actor and leaves no file.

    Args:
        device: device that the roles will use; see `planning.devices`.
        num_rows: number of rows of data that is not on this machine.
        runs: number of trials of a sweep over this config.
        price_per_gpu_hour: price of a GPU-hour, for the cost estimate.
    Raises:
        UserError: `raylign run` would refuse the config or its files, or the model cannot be traced.
    """
    if device.is_gpu and not config.uses_gpus:
        raise UserError(
            f"placement: no role has a GPU, so the run would not use {device.name}; "
            "set placement.policy.num_gpus=1 (and rollout, critic, reference), or leave out --gpu"
        )
    if config.uses_gpus and not device.is_gpu:
        raise UserError(f"placement: roles have num_gpus, and {device.name} has no GPU; name one with --gpu")
    with tempfile.TemporaryDirectory(prefix="raylign-plan-") as scratch:
        resolved = resolve_for_planning(config, Path(scratch), num_rows)
        steps = count_steps(resolved.config, resolved.num_rows)

        def measure(changed: RunConfig) -> MemoryModel:
            return MemoryModel(changed, resolved.profile, steps)

        model = measure(resolved.config)
        phases = resolved.config.phases
        found = demands(model, device)
        return Plan(
            config,
            device,
            resolved,
            {name: model.role(name) for name in dict.fromkeys(name for phase in phases for name in phase)},
            found,
            [] if all(demand.fits for demand in found) else changes(measure, resolved.config, device),
            [layout for _, layout in layouts(resolved.config)],
            cost_of(model, device, runs, price_per_gpu_hour),
        )
