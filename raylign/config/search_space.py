"""Turn a sweep file into trials, and check each as a run config before anything starts."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from raylign.config.graph import check_graph
from raylign.config.load import Lines, anchor, nearest, parse_as, parse_config, read_tree, set_value, value_at
from raylign.config.metrics import end_metrics, step_metrics
from raylign.config.run import RunConfig
from raylign.config.sweep import FIFOConfig, Parameter, PBTConfig, SweepConfig
from raylign.errors import ConfigError

RUN = "run"  # the searched key that chooses among the sweep's run configs
_MISSING = object()


@dataclass(frozen=True)
class TrialSpec:
    """One trial of a sweep: its id, the values of its searched keys, and the resulting run config."""

    id: str
    values: dict[str, Any]
    config: RunConfig


@dataclass(frozen=True)
class Sweep:
    """A sweep file that has been read and checked, with its trials."""

    config: SweepConfig
    trials: list[TrialSpec]
    """All trials of the sweep. With Optuna: at first random examples for the checks, later the trials that it suggested."""
    space: SearchSpace

    @property
    def num_trials(self) -> int:
        """Number of trials that the sweep will run."""
        return self.config.trials if self.config.searcher == "optuna" else len(self.trials)


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep file and generate its trials, which are the same every time.

    Raises:
        ConfigError: the sweep or one of its run configs is wrong; one line for each fault, `file:line: key: problem`.
    """
    tree, lines = read_tree(path, "a sweep")
    return SearchSpace(Path(path), parse_as(SweepConfig, tree, str(path), lines), lines).sweep()


class SearchSpace:
    """The values that the trials of a sweep may take; builds and checks the config of each trial.

    Args:
        file: the sweep file.
        config: its checked content.
        lines: the line of every key in it, for error messages.
    """

    def __init__(self, file: Path, config: SweepConfig, lines: Lines) -> None:
        self.file, self.config, self.lines = file, config, lines
        self._base_trees = {run: read_tree(self._base_file(run)) for run in config.runs}

    def sweep(self) -> Sweep:
        """Generate and check all trials.

        Raises:
            ConfigError: a condition, a value, the metric or the number of trials is wrong.
        """
        self._check_conditions()
        combinations = self._combinations()
        limit = self.config.budget.max_trials
        if limit and len(combinations) > limit:
            raise self._error(
                ("budget", "max_trials"),
                f"{len(combinations)} trials are more than {limit}; raise it, or search over less",
            )
        problems: list[str] = []
        trials = []
        for i, values in enumerate(combinations):
            name = f"{i:0{max(3, len(str(len(combinations) - 1)))}d}"
            try:
                trials.append(self.trial(name, values))
            except ConfigError as e:
                problems += [problem for problem in e.problems if problem not in problems]
        if problems:
            raise ConfigError(problems)
        self._check_trials(trials)
        return Sweep(self.config, trials, self)

    def trial(self, name: str, values: dict[str, Any]) -> TrialSpec:
        """Build the trial with these values of the searched keys.

        Raises:
            ConfigError: the resulting run config is not valid.
        """
        config = self._config(name, values)
        parsed = config.model_dump(mode="json")  # YAML reads 1e-4 as text; the config has the number
        return TrialSpec(name, {key: value_at(parsed, key, value) for key, value in values.items()}, config)

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The searched parameters, by key. `run` is among them if the sweep names several run configs."""
        runs = {RUN: Parameter(grid=self.config.runs)} if len(self.config.runs) > 1 else {}
        return runs | self.config.search

    def condition_keys(self, key: str) -> set[str]:
        """Return the keys that the `when` condition of a searched key refers to."""
        return set(self.config.search[key].when) if key in self.config.search else set()

    def condition_holds(self, key: str, values: dict[str, Any]) -> bool:
        """Return whether the `when` condition of a searched key holds, given the values chosen so far."""
        run = values.get(RUN, self.config.runs[0])
        for other, required in self.config.search[key].when.items():
            if other in self.config.search or other == RUN:
                actual = run if other == RUN else values.get(other, _MISSING)
            else:
                actual = self._base_value(run, other)
            if actual != required:
                return False
        return True

    def _combinations(self) -> list[dict[str, Any]]:
        """Return the values of each trial, by key: every point of the grid, with `trials` random draws for each point.

        With Optuna a grid is sampled like a choice, and the result only serves as examples for the checks.
        """
        parameters = self.parameters
        is_suggested = self.config.searcher == "optuna"
        grids = {} if is_suggested else {key: list(p.grid) for key, p in parameters.items() if p.grid is not None}
        combinations: list[dict[str, Any]] = []
        for grid_point in product(*grids.values()):
            for turn in range(self.config.trials):
                values = dict(zip(grids, grid_point, strict=True))
                for key, parameter in parameters.items():
                    if key not in grids:
                        # Each key has its own random stream, so that adding a key does not change the others.
                        stream = Random(f"{self.config.seed} {len(combinations)} {turn} {key}")
                        values[key] = sample_value(parameter, stream)
                combinations.append(values)
        active = [self._active_values(values) for values in combinations]
        # Dropping inactive keys can make combinations equal.
        return list({json.dumps(values, default=str): values for values in active}.values())

    def _active_values(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values without the keys whose condition does not hold."""
        active = dict(values)
        while off := [key for key in active if key in self.config.search and not self.condition_holds(key, active)]:
            for key in off:
                del active[key]
        return {key: active[key] for key in [RUN, *self.config.search] if key in active}

    def _config(self, name: str, values: dict[str, Any]) -> RunConfig:
        """Apply the sweep's overrides and the trial's values to its base run config."""
        run = values.get(RUN, self.config.runs[0])
        tree, lines = copy.deepcopy(self._base_trees[run][0]), Lines(self._base_trees[run][1])
        settings = [(key, ("overrides", key), value) for key, value in self.config.overrides.items()]
        settings += [(key, ("search", key), value) for key, value in values.items() if key != RUN]
        for key, place, value in settings:
            value = anchor(copy.deepcopy(value), self.file.resolve().parent)
            try:
                set_value(tree, lines, key, value, self._where(place))
            except ValueError as e:
                raise self._error(place, str(e)) from None
        base = self._base_file(run)
        tree = anchor(tree, base.resolve().parent)
        tree["name"] = f"{self.config.name}-{name}"
        config = parse_config(tree, str(base), lines)
        if config.tracking.wandb and config.tracking.wandb.group is None:
            wandb = config.tracking.wandb.model_copy(update={"group": self.config.name})
            config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"wandb": wandb})})
        return config

    def _check_conditions(self) -> None:
        """Check that every `when` condition refers to a known key and to a value that this key can have."""
        for key, parameter in self.config.search.items():
            for other, required in parameter.when.items():
                place = ("search", key, "when", other)
                if other in self.config.search:
                    possible = self.config.search[other].samples
                    if self.config.search[other].kind not in ("grid", "choice"):
                        raise self._error(
                            place, "a random number never equals a given one; use a key with grid or choice"
                        )
                elif other == RUN:
                    possible = list(self.config.runs)
                else:
                    values = [self._base_value(run, other) for run in self.config.runs]
                    possible = [value for value in values if value is not _MISSING]
                    if not possible:
                        known = [RUN, *self.config.search]
                        raise self._error(place, f"neither searched nor in the run config; {nearest(other, known)}")
                if required not in possible:
                    raise self._error(place, f"is never {required!r}, only {', '.join(map(repr, possible))}; fix it")

    def _check_trials(self, trials: list[TrialSpec]) -> None:
        """Check what the run config of a trial does not check by itself."""
        checked = set()
        for trial in trials:
            config = trial.config
            edges = json.dumps([config.sources(), config.task and config.task.model_dump(), config.algorithm.name])
            if edges not in checked:
                checked.add(edges)
                check_graph(config)
            if config.rollout.elastic:
                raise self._error(
                    ("run",),
                    "rollout.elastic: a trial has a fixed placement group, so its engines cannot change; remove it",
                )
            self._check_metric(config)
            self._check_mutable(config)

    def _check_metric(self, config: RunConfig) -> None:
        metric, steps, end = self.config.metric, step_metrics(config), end_metrics(config)
        if metric not in steps | end:
            name = config.algorithm.name
            if metric in ("score_before", "score_after", "kl") and config.evaluation is None:
                fix = "there is no evaluation section; add one"
            elif metric.startswith("evaluation/") and config.evaluation:
                fix = "only online runs with evaluation.every_steps above 0 report it; use score_after"
            else:
                fix = nearest(metric, sorted(steps | end))
            raise self._error(("metric",), f"no {name} run of this sweep reports {metric!r}; {fix}")
        if not isinstance(self.config.scheduler, FIFOConfig) and metric not in steps:
            raise self._error(
                ("metric",),
                f"{metric} is known only when a run has finished, but {self.config.scheduler.type} decides during the run; "
                f"use a metric of a step, such as {'reward/mean' if 'reward/mean' in steps else f'{config.algorithm.name}/loss'}",
            )

    def _check_mutable(self, config: RunConfig) -> None:
        if not isinstance(self.config.scheduler, PBTConfig):
            return
        tree = config.model_dump(mode="json")
        if "algorithm.kl.coef" in self.config.scheduler.mutate:
            controller = value_at(tree, "algorithm.kl.controller")
            if controller not in (None, "fixed"):
                raise self._error(
                    ("scheduler", "mutate"),
                    f"algorithm.kl.coef cannot change in the middle of a run whose algorithm.kl.controller is {controller}, "
                    "because the controller sets the coefficient; set it to fixed",
                )

    def _base_value(self, run: str, key: str) -> Any:
        """Return the value of a dotted key before the search: from the overrides, else from the run config."""
        if key in self.config.overrides:
            return self.config.overrides[key]
        return value_at(self._base_trees[run][0], key, _MISSING)

    def _base_file(self, run: str) -> Path:
        return self.file.parent / run

    def _where(self, place: tuple[str | int, ...]) -> str:
        return self.lines.place(place, self.file)

    def _error(self, place: tuple[str, ...], problem: str) -> ConfigError:
        return ConfigError([f"{self._where(place)}: {'.'.join(place)}: {problem}"])


def sample_value(parameter: Parameter, random: Random) -> Any:
    """Draw a value of a parameter; a grid is sampled like a choice."""
    match parameter.kind:
        case "choice" | "grid":
            return random.choice(parameter.samples)
        case "integer":
            return random.randint(*parameter.samples)
    low, high = parameter.samples
    if parameter.kind == "loguniform":
        value = math.exp(random.uniform(math.log(low), math.log(high)))
    else:
        value = random.uniform(low, high)
    return min(max(float(f"{value:.4g}"), low), high)  # rounded, so that the printed value is exactly the one used
