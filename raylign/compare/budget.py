"""The same budget for every run: how many steps of each algorithm it buys."""

from __future__ import annotations

from typing import Any

from raylign.config import OfflineConfig, OnlineConfig, RunConfig
from raylign.config.compare import BudgetConfig
from raylign.errors import ConfigError


def budget_settings(budget: BudgetConfig | None, config: RunConfig, steps: int | None = None) -> dict[str, Any]:
    """Settings, by dotted key, with which a run uses its budget; none without one.

    An offline run repeats its data as often as it must.

    Args:
        steps: how many steps of this method fit in `device_seconds`, measured by a pilot.
    Raises:
        ConfigError: the budget does not pay for one step.
    """
    if budget is None or (budget.per == "device_seconds" and steps is None):
        return {}
    number = steps if budget.per == "device_seconds" else int(budget.of_each / cost_of_step(budget, config))
    if not number:
        raise ConfigError(
            [
                f"budget.of_each: {budget.of_each} {budget.per} do not pay for one step of {config.name}, which takes "
                f"{cost_of_step(budget, config):,}; raise it, or lower the batches of that run"
            ]
        )
    if isinstance(config.algorithm, OnlineConfig):
        return {"algorithm.steps": number}
    return {"algorithm.max_steps": number, "algorithm.epochs": number}


def cost_of_step(budget: BudgetConfig, config: RunConfig) -> int:
    """Optimizer steps, or completion tokens passed (at their longest), of one step of the run's loop."""
    algorithm = config.algorithm
    if isinstance(algorithm, OnlineConfig):
        updates = algorithm.epochs * algorithm.minibatches
        completions = algorithm.samples_per_step * algorithm.epochs
    else:
        assert isinstance(algorithm, OfflineConfig)  # plan_runs refuses collect, which learns nothing
        updates = 1
        completions = algorithm.batch_size * algorithm.samples_per_item
    return updates if budget.per == "optimizer_steps" else completions * config.rollout.sampling.max_tokens
