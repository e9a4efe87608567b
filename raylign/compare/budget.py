"""The same budget for every run, as a number of steps of its algorithm."""

from __future__ import annotations

from typing import Any

from raylign.config import OfflineConfig, OnlineConfig, RunConfig
from raylign.config.compare import BudgetConfig
from raylign.errors import ConfigError


def budget_settings(budget: BudgetConfig | None, config: RunConfig, steps: int | None = None) -> dict[str, Any]:
    """Return the settings, by dotted key, with which a run uses its budget; empty without a budget.

    An offline run repeats its data as often as needed.

    Args:
        steps: number of steps of this method that fit in `device_seconds`, measured by a pilot.
    Raises:
        ConfigError: the budget is too small for one step.
    """
    if budget is None or (budget.unit == "device_seconds" and steps is None):
        return {}
    number = steps if budget.unit == "device_seconds" else int(budget.amount / cost_of_step(budget, config))
    if not number:
        raise ConfigError(
            [
                f"budget.amount: {budget.amount} {budget.unit} are too few for one step of {config.name}, which takes "
                f"{cost_of_step(budget, config):,}; raise the budget, or make the batches of that run smaller"
            ]
        )
    if isinstance(config.algorithm, OnlineConfig):
        return {"algorithm.steps": number}
    return {"algorithm.max_steps": number, "algorithm.epochs": number}


def cost_of_step(budget: BudgetConfig, config: RunConfig) -> int:
    """Return the cost of one step of the run's loop: optimizer steps, or completion tokens at their longest."""
    algorithm = config.algorithm
    if isinstance(algorithm, OnlineConfig):
        updates = algorithm.epochs * algorithm.minibatches
        completions = algorithm.samples_per_step * algorithm.epochs
    else:
        assert isinstance(algorithm, OfflineConfig)  # `read_recipes` refuses collect, which learns nothing
        updates = 1
        completions = algorithm.batch_size * algorithm.samples_per_item
    return updates if budget.unit == "optimizer_steps" else completions * config.rollout.sampling.max_tokens
