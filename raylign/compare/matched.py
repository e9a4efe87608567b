"""Checks that methods are comparable: the same start, reference, preferences and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raylign.compare.expand import Recipe
from raylign.config import PolicyGradientConfig, RunConfig
from raylign.config.graph import upstream_configs
from raylign.config.load import value_at
from raylign.errors import ConfigError
from raylign.storage.changes import differing

SAME: tuple[tuple[str, str], ...] = (
    ("model.path", "start from the same model"),
    ("model.compute_dtype", "compute in the same precision"),
    ("reference", "stay close to the same reference"),
    ("task", "use the same task"),
    ("evaluation.data", "be evaluated on the same prompts"),
    ("evaluation.reward", "be evaluated by the same reward"),
    ("rollout.engine", "be sampled by the same engine"),
    ("rollout.sampling", "be sampled in the same way"),
)
"""Settings that must be equal, and the end of the sentence that says why."""


def check_matched(recipes: Sequence[Recipe]) -> None:
    """Compare every method with the first one that has the setting.

    Raises:
        ConfigError: a line for each setting that differs, with its place, the other value, and the fix.
    """
    problems = [fault for dotted, why in SAME for fault in _differing(recipes, dotted, why)]
    problems += _preferences(recipes)
    problems += _kl_in_reward(recipes)
    if problems:
        raise ConfigError(problems)


def _differing(recipes: Sequence[Recipe], dotted: str, why: str) -> list[str]:
    first = recipes[0]
    wanted = value_of(first.config, dotted)
    problems = []
    for other in recipes[1:]:
        for place, ours, theirs in differing(value_of(other.config, dotted), wanted, dotted):
            problems.append(
                f"{other.place(place)}: {place}: {_format(ours)}, but {first.method.name} has {_format(theirs)} "
                f"({first.place(place)}); methods that are compared must {why}: set the same in both, or under overrides"
            )
    return problems


def _preferences(recipes: Sequence[Recipe]) -> list[str]:
    """Return a problem for each method that learns from other preference pairs, itself or through its reward model."""
    sources = [(recipe, *source) for recipe in recipes if (source := preferences_of(recipe.config))]
    if not sources:
        return []
    first, where, wanted = sources[0]
    return [
        f"{other.place(place)}: {place}: {other.method.name} learns from the preferences {dataset}, but {first.method.name} from "
        f"{wanted} ({first.place(where)}); methods that are compared must learn from the same ones"
        for other, place, dataset in sources[1:]
        if dataset != wanted
    ]


def preferences_of(config: RunConfig) -> tuple[str, str] | None:
    """Return the place and the path of the preference pairs behind a run; None if it uses none."""
    if config.algorithm.learns_from_preferences:
        return "data.path", config.data.path
    if config.reward and config.reward.type == "model" and config.reward.path.startswith("run:"):
        model = upstream_configs(config)[config.reward.path]
        return "reward.path", model.data.path
    return None


def _kl_in_reward(recipes: Sequence[Recipe]) -> list[str]:
    """Return a problem for each method whose KL coefficient adapts, because it is compared over fixed ones."""
    problems = []
    for recipe in recipes:
        algorithm = recipe.config.algorithm
        moves = isinstance(algorithm, PolicyGradientConfig) and algorithm.kl.controller == "adaptive"
        if moves and not recipe.method.best_of:
            problems.append(
                f"{recipe.place('algorithm.kl.controller')}: algorithm.kl.controller: adaptive changes the beta that "
                "methods are compared over; set fixed or annealed"
            )
    return problems


def value_of(config: RunConfig, dotted: str) -> Any:
    """Return a setting as plain data. If `evaluation.reward` is not set, it is the run's own reward."""
    if dotted == "evaluation.reward":
        reward = config.evaluation_reward
        return reward and reward.model_dump(mode="json")
    return value_at(config.model_dump(mode="json"), dotted)


def _format(value: Any) -> str:
    return "none" if value is None else str(value)
