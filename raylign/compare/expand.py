"""From a spec to its runs: one config for every method, setting and seed, checked and written before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from raylign.compare.budget import budget_settings
from raylign.config import ALGORITHMS, RunConfig
from raylign.config.compare import CompareConfig, MethodConfig, method_config_path
from raylign.config.graph import check_graph
from raylign.config.load import Lines, build_config, read_tree, set_value
from raylign.errors import ConfigError
from raylign.files import write_atomic
from raylign.storage.outputs import output_base

EVERY_SAMPLE = 2**31


@dataclass(frozen=True)
class PlannedRun:
    """A run of the comparison, not executed yet. `id` names it in records, figures and files."""

    id: str
    method: str
    label: str
    setting: dict[str, Any]  # beta (or n) first, then the searched settings, by dotted key
    seed: int
    file: Path  # `raylign run` of this file repeats the run
    config: RunConfig


@dataclass(frozen=True)
class Recipe:
    """A method's run config with the overrides of the spec, and the place where each of its keys was set."""

    method: MethodConfig
    index: int
    file: Path
    tree: dict[str, Any]  # the file with the overrides, not validated
    config: RunConfig  # the same, validated
    lines: Lines

    def place(self, dotted: str) -> str:
        """Return `file:line` of a key, or of the nearest key above it."""
        return self.lines.place(tuple(dotted.split(".")), self.file)


def read_recipes(path: Path, spec: CompareConfig, lines: Lines) -> list[Recipe]:
    """Read the run config of every method, with the task and the overrides of the spec.

    Raises:
        ConfigError: an error in a run config or in the spec, with its line.
    """
    return [_recipe(path, spec, lines, i) for i in range(len(spec.methods))]


def comparison_folder(spec: CompareConfig) -> Path:
    """Return the folder of a comparison, named by everything that decides its runs except methods, betas and seeds.

    So the same command continues where it stopped, and further methods, betas and seeds join the finished runs.
    """
    tree = spec.model_dump(mode="json", exclude={"methods", "betas", "seeds", "price_per_device_hour", "target_score"})
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]
    return output_base(spec.output_dir) / f"compare-{spec.name}-{digest}"


def expand_runs(
    spec: CompareConfig, recipes: list[Recipe], folder: Path, steps: dict[str, int] | None = None
) -> list[PlannedRun]:
    """Check and write the configs of all runs, seed by seed, so that an interrupted comparison has complete seeds.

    Args:
        steps: number of steps of each method, if a pilot has measured it (a budget of device-seconds).
    """
    configs = folder / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    return [
        _write_run(spec, recipe, setting, seed, folder, (steps or {}).get(recipe.method.name))
        for seed in spec.seeds
        for recipe in recipes
        for setting in settings_of(spec, recipe.method)
    ]


def settings_of(spec: CompareConfig, method: MethodConfig) -> Iterator[dict[str, Any]]:
    """Yield every combination of beta and searched settings, or every n."""
    if method.best_of:
        yield from ({"n": n} for n in method.best_of)
        return
    for beta, *values in product(method.betas or spec.betas, *method.search.values()):
        yield {"beta": beta, **dict(zip(method.search, values, strict=True))}


def _recipe(path: Path, spec: CompareConfig, spec_lines: Lines, index: int) -> Recipe:
    method = spec.methods[index]
    file = method_config_path(path, method)
    tree, lines = read_tree(file)

    def put(dotted: str, value: Any, *place: str | int) -> None:
        _set(tree, lines, dotted, value, spec_lines.place(place, path))

    if spec.task:
        put("task", spec.task.model_dump(mode="json"), "task")
    for key, value in spec.overrides.items():
        put(key, value, "overrides", key)
    for key, value in method.overrides.items():
        put(key, value, "methods", index, "overrides", key)
    for key, values in method.search.items():
        put(key, values[0], "methods", index, "search", key)
    recipe = Recipe(method, index, file, tree, build_config(file, tree, lines, []), lines)
    config = recipe.config
    name = config.algorithm.name
    if not method.best_of and config.algorithm.kl_key is None:
        usable = [name for name, algorithm in ALGORITHMS.items() if algorithm.kl_key]
        raise ConfigError(
            [
                f"{recipe.place('algorithm.name')}: algorithm.name: {name} has no KL coefficient to compare over; use one of {', '.join(usable)}"
            ]
        )
    if config.evaluation is None:
        raise ConfigError(
            [f"{file}:1: evaluation: method {method.name} is not evaluated; add evaluation: {{data: ..., reward: ...}}"]
        )
    check_graph(config)
    return recipe


def _set(tree: dict[str, Any], lines: Lines, dotted: str, value: Any, place: str) -> None:
    try:
        set_value(tree, lines, dotted, value, place)
    except ValueError as e:
        raise ConfigError([f"{place}: {dotted}: {e}; remove it"]) from None


def _write_run(
    spec: CompareConfig, recipe: Recipe, setting: dict[str, Any], seed: int, folder: Path, steps: int | None
) -> PlannedRun:
    method, config = recipe.method, recipe.config
    values = "-".join(f"{key.rpartition('.')[2]}{_short(value)}" for key, value in setting.items())
    name = f"{method.name.replace('+', 'p')}-{values}-seed{seed}"
    tree, lines = deepcopy(recipe.tree), Lines(recipe.lines)
    ours: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "output_dir": str(folder),
        "evaluation.keep_samples": EVERY_SAMPLE,
        "evaluation.every_steps": spec.evaluation.every_steps,
    }
    if spec.evaluation.prompts:
        ours["evaluation.data.max_rows"] = spec.evaluation.prompts
    if method.best_of:
        tree |= _best_of(config, setting["n"], spec.evaluation.prompts)
        ours = {key: ours[key] for key in ("name", "seed", "output_dir")}
    else:
        kl_key = config.algorithm.kl_key
        assert kl_key is not None  # _recipe checks it
        ours |= {kl_key if key == "beta" else key: value for key, value in setting.items()}
        ours |= budget_settings(spec.budget, config, steps)
    for key, value in ours.items():
        _set(tree, lines, key, value, str(recipe.file))
    file = folder / "configs" / f"{name}.yaml"
    config = build_config(recipe.file, tree, lines, [])
    write_atomic(file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return PlannedRun(name, method.name, method.title, dict(setting), seed, file, config)


def _best_of(config: RunConfig, n: int, prompts: int | None) -> dict[str, Any]:
    """Return the sections of a collect run in place of the run: n samples of every held-out prompt, with the
    evaluation's reward."""
    assert config.evaluation is not None
    data = config.evaluation.data.model_copy(update={"max_rows": prompts} if prompts else {})
    reward = config.evaluation_reward
    assert reward is not None  # RunConfig checks it
    algorithm = {"name": "collect", "rows": None, "samples_per_prompt": n, "keep": "all", "prompts_per_step": 256}
    return {
        "data": data.model_dump(mode="json"),
        "reward": reward.model_dump(mode="json"),
        "evaluation": None,
        "reference": None,
        "algorithm": algorithm,
    }


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "_").replace(" ", "")
