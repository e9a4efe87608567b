"""Algorithms on the exact task: every run through the controller and its actors, every policy measured without noise."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raylign.config import ALGORITHMS, ExactTask, RunConfig, load_config
from raylign.errors import UserError
from raylign.files import write_atomic

if TYPE_CHECKING:
    from raylign.tasks.exact_optimum import Enumeration, Float64Array

RECIPES = files("raylign.compare.exact") / "recipes"
_NAMES = {name.replace("+", "p"): name for name in ALGORITHMS}
COMPARABLE = sorted(_NAMES[stem] for file in RECIPES.iterdir() if (stem := file.name.removesuffix(".yaml")) in _NAMES)
"""Algorithms that have a recipe for the exact task."""


@dataclass(frozen=True)
class ExactRecord:
    """One run and what its policy is worth; see `raylign.tasks.exact_optimum` for the definitions."""

    algorithm: str
    beta: float
    seed: int
    fraction_of_optimum: float
    J: float
    J_ref: float
    J_star: float
    reward: float
    kl: float
    policy: str  # folder
    config: str  # `raylign run` of this file makes the same policy
    seconds: float


@dataclass(frozen=True)
class Plan:
    """One run to be made."""

    algorithm: str
    beta: float
    seed: int
    file: Path
    config: RunConfig


@dataclass(frozen=True)
class ExactSpec:
    """What is to be compared.

    Args:
        overrides: `dotted.key=value` for every run; `task.*` sets the task.
        num_pairs: preference pairs, sampled from the reference, that DPO learns from.
        output_dir: where the comparison's folder is made.
    """

    algorithms: Sequence[str]
    betas: Sequence[float]
    seeds: Sequence[int]
    overrides: Sequence[str] = ()
    num_pairs: int = 20_000
    output_dir: str = "runs"


def plan(wanted: ExactSpec) -> tuple[Path, list[Plan]]:
    """The comparison's folder, with a run config for every algorithm, beta and seed, all of them checked.

    The folder is named by what is compared on (the overrides, and raylign's recipes), so that the same command goes on
    where it stopped and a further algorithm joins the ones that are done.

    Raises:
        UserError, ConfigError: before anything is started.
    """
    for name in wanted.algorithms:
        if name not in COMPARABLE:
            near = difflib.get_close_matches(name, COMPARABLE, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(COMPARABLE)}"
            raise UserError(f"--algorithms: {name!r} cannot be compared on the exact task; {hint}")
    for beta in wanted.betas:
        if not beta > 0:
            raise UserError(f"--betas: {beta:g}; the optimum exists for a beta above 0 only")
    for seed in wanted.seeds:
        if seed < 0:
            raise UserError(f"--seeds: {seed}; a seed is 0 or more")
    recipes = sorted(file.read_text() for file in RECIPES.iterdir() if file.name.endswith(".yaml"))
    digest = hashlib.sha256(json.dumps([sorted(wanted.overrides), wanted.num_pairs, recipes]).encode()).hexdigest()[:8]
    folder = Path(wanted.output_dir).resolve() / f"compare-exact-{digest}"
    configs = folder / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    plans = []
    for algorithm, seed, beta in product(wanted.algorithms, wanted.seeds, wanted.betas):
        file = configs / f"{algorithm.replace('+', 'p')}-beta{beta:g}-seed{seed}.yaml"
        kl_key = ALGORITHMS[algorithm].kl_key
        assert kl_key is not None  # every recipe is of an algorithm with a KL
        settings: dict[str, Any] = {kl_key: beta}
        if algorithm == "dpo":
            pairs = configs / f"pairs-seed{seed}.yaml"
            _write(pairs, "pairs", seed, folder, wanted.overrides, {"algorithm.rows": wanted.num_pairs})
            settings["data.path"] = f"run:{pairs}"
        _write(file, algorithm, seed, folder, wanted.overrides, settings)
        plans.append(Plan(algorithm, beta, seed, file, load_config(file)))
    return folder, plans


def execute(plans: Sequence[Plan], note: Callable[[str], None]) -> Iterator[ExactRecord]:
    """Make the runs one after another on one Ray, and measure each as it is done. A run that is done is not done again.

    Args:
        note: is told what goes on.
    """
    from raylign.actors.session import ray_session
    from raylign.controllers.pool import actor_pool
    from raylign.controllers.run import run

    with ray_session(), actor_pool() as pool:
        for number, one in enumerate(plans, 1):
            note(f"{number} of {len(plans)}: {one.algorithm}, beta {one.beta:g}, seed {one.seed}")
            result = run(one.config, resume=True, quiet=True, pool=pool)
            yield _measure(one, str(result.output), result.summary["wall_seconds"])


def curve(plans: Sequence[Plan], rows: Sequence[ExactRecord]) -> list[tuple[float, float]]:
    """(KL, reward) of the optimum over betas that reach past those of the rows: the frontier no policy can cross."""
    import numpy as np

    from raylign.tasks.exact_optimum import frontier

    enumeration, ref = _yardstick(_task(plans[0].config).model_dump_json(), _reference(rows[0].policy))
    betas = np.geomspace(min(row.beta for row in rows) / 3, max(row.beta for row in rows) * 30, 60)
    return frontier(ref, enumeration.rewards, betas.tolist())


def write_records(file: Path, rows: Sequence[ExactRecord]) -> None:
    """A JSON list with an object for every row."""
    write_atomic(file, json.dumps([asdict(row) for row in rows], indent=1))


def _measure(one: Plan, policy: str, seconds: float) -> ExactRecord:
    from raylign.tasks.exact_optimum import evaluate, log_probabilities, optimum

    enumeration, ref = _yardstick(_task(one.config).model_dump_json(), _reference(policy))
    value = evaluate(log_probabilities(policy, enumeration), ref, enumeration.rewards, one.beta)
    best = optimum(ref, enumeration.rewards, one.beta)
    return ExactRecord(
        algorithm=one.algorithm,
        beta=one.beta,
        seed=one.seed,
        fraction_of_optimum=value.fraction,
        J=value.j,
        J_ref=best.j_ref,
        J_star=best.j_star,
        reward=value.reward,
        kl=value.kl,
        policy=policy,
        config=str(one.file),
        seconds=seconds,
    )


@cache
def _yardstick(task: str, reference: str) -> tuple[Enumeration, Float64Array]:
    """All completions, and their logprobs under the reference; the same for every run of a comparison."""
    from raylign.tasks.exact_optimum import Enumeration, log_probabilities

    enumeration = Enumeration.of(ExactTask.model_validate_json(task))
    return enumeration, log_probabilities(reference, enumeration)


def _reference(policy: str) -> str:
    """Folder of the reference of the run that made this policy: where it started."""
    return yaml.safe_load((Path(policy).parent / "resolved.yaml").read_text())["model"]["path"]


def _task(config: RunConfig) -> ExactTask:
    assert isinstance(config.task, ExactTask)
    return config.task


def _write(
    file: Path, recipe: str, seed: int, folder: Path, overrides: Sequence[str], settings: dict[str, Any]
) -> None:
    """The recipe with everything set, as a file that `raylign run` takes."""
    source = RECIPES / f"{recipe.replace('+', 'p')}.yaml"
    ours = {"name": file.stem, "seed": seed, "output_dir": str(folder), **settings}
    given = [override for override in overrides if override.startswith("task.") or recipe != "pairs"]
    config = load_config(Path(str(source)), [*(f"{key}={json.dumps(value)}" for key, value in ours.items()), *given])
    tree = config.model_dump(mode="json")
    if "rollout.sampling.max_tokens" not in {override.partition("=")[0] for override in given}:
        tree["rollout"]["sampling"]["max_tokens"] = _task(config).length
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
