"""A sweep file -> its trials, every one of them a checked run config, before anything is started."""

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

RUN = "run"  # as a key: which of the sweep's run configs a trial is made from
_MISSING = object()


@dataclass(frozen=True)
class Point:
    """One trial: a name, what is searched as it came out, and the run config that follows."""

    id: str
    values: dict[str, Any]
    config: RunConfig


@dataclass(frozen=True)
class Sweep:
    """A checked sweep."""

    config: SweepConfig
    points: list[Point]
    """All trials; with a searcher that learns, the draws that were checked, and then the trials that it asked for."""
    drawing: Drawing

    @property
    def num_trials(self) -> int:
        return self.config.trials if self.config.searcher == "optuna" else len(self.points)


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep and draw its trials: the same ones every time.

    Raises:
        ConfigError: in the sweep, or in a run config that comes of it; one line each, `file:line: key: problem`.
    """
    tree, lines = read_tree(path, "a sweep")
    return Drawing(Path(path), parse_as(SweepConfig, tree, str(path), lines), lines).sweep()


class Drawing:
    """Makes the trials of one sweep file."""

    def __init__(self, file: Path, config: SweepConfig, lines: Lines) -> None:
        self.file, self.config, self.lines = file, config, lines
        self._bases = {run: read_tree(self._base_file(run)) for run in config.runs}

    def sweep(self) -> Sweep:
        self._check_conditions()
        values = self._values()
        limit = self.config.budget.trials
        if limit and len(values) > limit:
            raise self._fault(
                ("budget", "trials"), f"{len(values)} trials are more than {limit}; raise it, or search less"
            )
        problems: list[str] = []
        points = []
        for number, drawn in enumerate(values):
            name = f"{number:0{max(3, len(str(len(values) - 1)))}d}"
            try:
                points.append(self.point(name, drawn))
            except ConfigError as e:
                problems += [problem for problem in e.problems if problem not in problems]
        if problems:
            raise ConfigError(problems)
        self._check_points(points)
        return Sweep(self.config, points, self)

    def point(self, name: str, values: dict[str, Any]) -> Point:
        """The trial that has these values.

        Raises:
            ConfigError: they make no run config.
        """
        config = self._config(name, values)
        shown = config.model_dump(mode="json")  # 1e-4 in YAML is a text, in the config a number
        return Point(name, {key: value_at(shown, key, value) for key, value in values.items()}, config)

    @property
    def space(self) -> dict[str, Parameter]:
        """What is searched, by key; which run config a trial is made from is one, where there are several."""
        several = {RUN: Parameter(grid=self.config.runs)} if len(self.config.runs) > 1 else {}
        return several | self.config.search

    def about(self, key: str) -> set[str]:
        """The keys that the condition of a searched key is about."""
        return set(self.config.search[key].when) if key in self.config.search else set()

    def _values(self) -> list[dict[str, Any]]:
        """What is searched in each trial, by key: every point of the grid, with `trials` draws each. For a searcher that
        learns a grid is a choice, and these are examples."""
        space = self.space
        learns = self.config.searcher == "optuna"
        grids = {} if learns else {key: list(p.grid) for key, p in space.items() if p.grid is not None}
        found: list[dict[str, Any]] = []
        for point in product(*grids.values()):
            for turn in range(self.config.trials):
                values = dict(zip(grids, point, strict=True))
                for key, parameter in space.items():
                    if key not in grids:
                        # A draw of its own for each key, so that a further key does not change the others.
                        values[key] = draw(parameter, Random(f"{self.config.seed} {len(found)} {turn} {key}"))
                found.append(values)
        kept = [self._active(values) for values in found]
        return list({json.dumps(values, default=str): values for values in kept}.values())  # conditions make equal ones

    def _active(self, values: dict[str, Any]) -> dict[str, Any]:
        """Without the keys whose condition does not hold."""
        active = dict(values)
        while off := [key for key in active if key in self.config.search and not self.holds(key, active)]:
            for key in off:
                del active[key]
        order = [RUN, *self.config.search]
        return {key: active[key] for key in order if key in active}

    def holds(self, key: str, values: dict[str, Any]) -> bool:
        """Whether the condition of a searched key does, where these are the values so far."""
        run = values.get(RUN, self.config.runs[0])
        for other, wanted in self.config.search[key].when.items():
            if other in self.config.search or other == RUN:
                found = run if other == RUN else values.get(other, _MISSING)
            else:
                found = self._in_base(run, other)
            if found != wanted:
                return False
        return True

    def _config(self, name: str, values: dict[str, Any]) -> RunConfig:
        """The base, with the sweep's overrides and the trial's values over it."""
        run = values.get(RUN, self.config.runs[0])
        tree, lines = copy.deepcopy(self._bases[run][0]), Lines(self._bases[run][1])
        given = [((key,), ("overrides", key), value) for key, value in self.config.overrides.items()]
        given += [((key,), ("search", key), value) for key, value in values.items() if key != RUN]
        for (key,), place, value in given:
            value = anchor(copy.deepcopy(value), self.file.resolve().parent)
            try:
                set_value(tree, lines, key, value, self._where(place))
            except ValueError as e:
                raise self._fault(place, str(e)) from None
        base = self._base_file(run)
        tree = anchor(tree, base.resolve().parent)
        tree["name"] = f"{self.config.name}-{name}"
        config = parse_config(tree, str(base), lines)
        if config.tracking.wandb and config.tracking.wandb.group is None:
            wandb = config.tracking.wandb.model_copy(update={"group": self.config.name})
            config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"wandb": wandb})})
        return config

    def _check_conditions(self) -> None:
        """Every condition is about something that is there, and that can come true."""
        for key, parameter in self.config.search.items():
            for other, wanted in parameter.when.items():
                place = ("search", key, "when", other)
                if other in self.config.search:
                    possible = self.config.search[other].samples
                    if self.config.search[other].kind not in ("grid", "choice"):
                        raise self._fault(
                            place, "a drawn number is never just this one; ask for a key with grid or choice"
                        )
                elif other == RUN:
                    possible = list(self.config.runs)
                else:
                    possible = [v for v in (self._in_base(run, other) for run in self.config.runs) if v is not _MISSING]
                    if not possible:
                        known = [RUN, *self.config.search]
                        raise self._fault(place, f"neither searched nor in the run config; {nearest(other, known)}")
                if wanted not in possible:
                    raise self._fault(place, f"is never {wanted!r}, only {', '.join(map(repr, possible))}; mend it")

    def _check_points(self, points: list[Point]) -> None:
        """What a run config alone does not tell."""
        checked = set()
        for point in points:
            config = point.config
            edges = json.dumps([config.sources(), config.task and config.task.model_dump(), config.algorithm.name])
            if edges not in checked:
                checked.add(edges)
                check_graph(config)
            if config.rollout.elastic:
                raise self._fault(
                    ("run",), "rollout.elastic: a trial has one placement group and its engines stay; remove it"
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
                fix = "only online runs with evaluation.every_steps above 0 have it; score_after is known at the end"
            else:
                fix = nearest(metric, sorted(steps | end))
            raise self._fault(("metric",), f"no {name} run of this sweep reports {metric!r}; {fix}")
        if not isinstance(self.config.scheduler, FIFOConfig) and metric not in steps:
            raise self._fault(
                ("metric",),
                f"{metric} is known when a run has ended, and {self.config.scheduler.type} decides before; use a metric of a step, such as "
                f"{'reward/mean' if 'reward/mean' in steps else f'{config.algorithm.name}/loss'}",
            )

    def _check_mutable(self, config: RunConfig) -> None:
        if not isinstance(self.config.scheduler, PBTConfig):
            return
        tree = config.model_dump(mode="json")
        if "algorithm.kl.coef" in self.config.scheduler.mutate:
            controller = value_at(tree, "algorithm.kl.controller")
            if controller not in (None, "fixed"):
                raise self._fault(
                    ("scheduler", "mutate"),
                    f"algorithm.kl.coef cannot change in the middle of a run whose algorithm.kl.controller is {controller}: "
                    "it sets the coefficient itself; set fixed",
                )

    def _in_base(self, run: str, key: str) -> Any:
        if key in self.config.overrides:
            return self.config.overrides[key]
        return value_at(self._bases[run][0], key, _MISSING)

    def _base_file(self, run: str) -> Path:
        return self.file.parent / run

    def _where(self, place: tuple[str | int, ...]) -> str:
        return self.lines.place(place, self.file)

    def _fault(self, place: tuple[str, ...], problem: str) -> ConfigError:
        return ConfigError([f"{self._where(place)}: {'.'.join(place)}: {problem}"])


def draw(parameter: Parameter, random: Random) -> Any:
    """A value of a key that is not a grid; of a grid, any of it."""
    match parameter.kind:
        case "choice" | "grid":
            return random.choice(parameter.samples)
        case "integer":
            return random.randint(*parameter.samples)
    low, high = parameter.samples
    if parameter.kind == "loguniform":
        drawn = math.exp(random.uniform(math.log(low), math.log(high)))
    else:
        drawn = random.uniform(low, high)
    return min(max(float(f"{drawn:.4g}"), low), high)  # what is shown is what is run
