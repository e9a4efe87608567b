"""From `--algorithms`, `--betas` and `--seeds` to the runs of a comparison on the exact task: a checked config for each."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from raylign.compare.expand import PlannedRun
from raylign.config import ALGORITHMS, ExactTask, RunConfig, load_config
from raylign.errors import UserError

RECIPES = files("raylign.compare.exact") / "recipes"
_NAMES = {name.replace("+", "p"): name for name in ALGORITHMS}
COMPARABLE = sorted(_NAMES[stem] for file in RECIPES.iterdir() if (stem := file.name.removesuffix(".yaml")) in _NAMES)
"""Algorithms with a recipe for the exact task."""


@dataclass(frozen=True)
class ExactSpec:
    """A comparison on the exact task, as the command line describes it.

    Args:
        overrides: `dotted.key=value` for every run; `task.*` sets the task.
        num_pairs: preference pairs for DPO, sampled from the reference.
        output_dir: where the comparison's folder is made.
    """

    algorithms: Sequence[str]
    betas: Sequence[float]
    seeds: Sequence[int]
    overrides: Sequence[str] = ()
    num_pairs: int = 20_000
    output_dir: str = "runs"


def expand_exact(spec: ExactSpec) -> tuple[Path, list[PlannedRun]]:
    """Check and write a run config for every algorithm, beta and seed; return the comparison's folder and the runs.

    The folder is named by the overrides and raylign's recipes, so that the same command continues where it stopped and
    further algorithms, betas and seeds join the finished runs.

    Raises:
        UserError, ConfigError: an option is wrong; nothing was started.
    """
    for name in spec.algorithms:
        if name not in COMPARABLE:
            near = difflib.get_close_matches(name, COMPARABLE, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(COMPARABLE)}"
            raise UserError(f"--algorithms: {name!r} cannot be compared on the exact task; {hint}")
    for beta in spec.betas:
        if not beta > 0:
            raise UserError(f"--betas: {beta:g}; the optimum exists only for a beta above 0")
    for seed in spec.seeds:
        if seed < 0:
            raise UserError(f"--seeds: {seed}; a seed is 0 or more")
    recipes = sorted(file.read_text() for file in RECIPES.iterdir() if file.name.endswith(".yaml"))
    digest = hashlib.sha256(json.dumps([sorted(spec.overrides), spec.num_pairs, recipes]).encode()).hexdigest()[:8]
    folder = Path(spec.output_dir).resolve() / f"compare-exact-{digest}"
    configs = folder / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    planned = []
    for algorithm, seed, beta in product(spec.algorithms, spec.seeds, spec.betas):
        file = configs / f"{algorithm.replace('+', 'p')}-beta{beta:g}-seed{seed}.yaml"
        kl_key = ALGORITHMS[algorithm].kl_key
        assert kl_key is not None  # every recipe has a KL coefficient
        settings: dict[str, Any] = {kl_key: beta}
        if ALGORITHMS[algorithm].reads == "pairs":
            pairs = configs / f"pairs-seed{seed}.yaml"
            _write(pairs, "pairs", seed, folder, spec.overrides, {"algorithm.rows": spec.num_pairs})
            settings["data.path"] = f"run:{pairs}"
        config = _write(file, algorithm, seed, folder, spec.overrides, settings)
        planned.append(PlannedRun(file.stem, algorithm, algorithm, {"beta": beta}, seed, file, config))
    return folder, planned


def _write(
    file: Path, recipe: str, seed: int, folder: Path, overrides: Sequence[str], settings: dict[str, Any]
) -> RunConfig:
    """Write the recipe with all settings, as a file for `raylign run`; return what `raylign run` reads from it."""
    source = RECIPES / f"{recipe.replace('+', 'p')}.yaml"
    common = {"name": file.stem, "seed": seed, "output_dir": str(folder), **settings}
    given = [override for override in overrides if override.startswith("task.") or recipe != "pairs"]
    config = load_config(Path(str(source)), [*(f"{key}={json.dumps(value)}" for key, value in common.items()), *given])
    assert isinstance(config.task, ExactTask)
    tree = config.model_dump(mode="json")
    if "rollout.sampling.max_tokens" not in {override.partition("=")[0] for override in given}:
        tree["rollout"]["sampling"]["max_tokens"] = config.task.length
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_config(file)
