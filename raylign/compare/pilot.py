"""How many steps fit in a budget of device-seconds: a short run of every method, measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from raylign.compare.costing import cost_of_run
from raylign.compare.expand import Recipe, expand_runs
from raylign.config.compare import CompareConfig
from raylign.errors import ConfigError, RaylignError
from raylign.tracking import read_metrics
from raylign.tuning.trials import Trial, run_trials

PILOT_STEPS = 3
PILOT = "pilot.json"


def measured_steps(
    spec: CompareConfig, recipes: Sequence[Recipe], folder: Path, note: Callable[[str], None]
) -> dict[str, int]:
    """Steps of each method, by name. Measured once and kept in the folder, so that a comparison goes on with the same."""
    file = folder / PILOT
    if file.exists():
        return json.loads(file.read_text())
    assert spec.budget is not None
    first = spec.model_copy(update={"seeds": spec.seeds[:1], "betas": spec.betas[:1]})
    learners = [recipe for recipe in recipes if not recipe.method.best_of]
    found = {}
    for recipe in learners:
        short = expand_runs(first, [recipe], folder, {recipe.method.name: PILOT_STEPS})[0]
        (result,) = run_trials([Trial(short.id, short.config)], folder / "pilot", note=note)
        if result.folder is None:
            raise RaylignError(f"the pilot of {recipe.method.name} failed: {result.error}")
        found[recipe.method.name] = steps_within(spec.budget.of_each, result.folder, recipe.method.name)
    file.write_text(json.dumps(found, indent=1))
    return found


def steps_within(device_seconds: float, folder: Path, method: str) -> int:
    """What is left of the budget behind start and reference pass, in steps as long as the fastest of the pilot.

    (The first steps of a run warm up.)
    """
    cost = cost_of_run(folder)
    steps = [line["time/step"] for line in read_metrics(folder / "metrics.jsonl")]
    fixed = cost.learning_device_seconds - sum(steps) * cost.devices
    number = int((device_seconds - fixed) / (min(steps) * cost.devices))
    if number < 1:
        raise ConfigError(
            [
                f"budget.of_each: {device_seconds:g} device-seconds do not pay for one step of {method}: its start alone takes "
                f"{fixed:.0f}; raise it"
            ]
        )
    return number
