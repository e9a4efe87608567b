"""Measures how many steps fit in a budget of device-seconds, with a short run of every method."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from raylign.compare.costing import cost_of_run
from raylign.compare.expand import Recipe, expand_runs
from raylign.config.compare import CompareConfig
from raylign.errors import ConfigError, RaylignError
from raylign.storage.run_folder import RunFolder
from raylign.tuning.trials import Trial, run_trials

PILOT_STEPS = 3
PILOT = "pilot.json"


def measured_steps(
    spec: CompareConfig, recipes: Sequence[Recipe], folder: Path, note: Callable[[str], None]
) -> dict[str, int]:
    """Return the number of steps of each method, by name.

    It is measured once and kept in the folder, so that a resumed comparison uses the same numbers.
    """
    file = folder / PILOT
    if file.exists():
        return json.loads(file.read_text())
    assert spec.budget is not None
    first = spec.model_copy(update={"seeds": spec.seeds[:1], "betas": spec.betas[:1]})
    learners = [recipe for recipe in recipes if not recipe.method.best_of]
    steps: dict[str, int] = {}
    for recipe in learners:
        short = expand_runs(first, [recipe], folder, {recipe.method.name: PILOT_STEPS})[0]
        (result,) = run_trials([Trial(short.id, short.config)], folder / "pilot", note=note)
        if result.folder is None:
            raise RaylignError(f"the pilot of {recipe.method.name} failed: {result.error}")
        steps[recipe.method.name] = steps_within(spec.budget.amount, result.folder, recipe.method.name)
    file.write_text(json.dumps(steps, indent=1))
    return steps


def steps_within(device_seconds: float, folder: Path, method: str) -> int:
    """Return how many steps fit in the budget after start and reference pass, each as long as the pilot's fastest.

    The first steps of a run are slower, because they warm up.
    """
    cost = cost_of_run(folder)
    steps = [line["time/step"] for line in RunFolder(folder).metrics()]
    fixed = cost.learning_device_seconds - sum(steps) * cost.devices
    number = int((device_seconds - fixed) / (min(steps) * cost.devices))
    if number < 1:
        raise ConfigError(
            [
                f"budget.amount: {device_seconds:g} device-seconds are too few for one step of {method}: its start alone takes "
                f"{fixed:.0f}; raise the budget"
            ]
        )
    return number
