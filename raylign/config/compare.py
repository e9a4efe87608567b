"""What is compared: methods, each a run config, over the same betas and seeds, within the same budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raylign.config.base import Config
from raylign.config.load import Lines, parse_as, read_tree
from raylign.config.task import TaskConfig
from raylign.errors import ConfigError

Beta = Annotated[float, Field(gt=0)]


class MethodConfig(Config):
    name: str = Field(pattern=r"^[A-Za-z0-9+_]+$")
    """Name in files and run ids."""
    run: str
    """Run config (YAML), beside the spec."""
    label: str | None = None
    """Name in figures and tables; `name` if not set."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Values by dotted key, over the run config."""
    betas: tuple[Beta, ...] | None = None
    """Weights of the KL for this method, instead of the spec's."""
    search: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Further settings, values by dotted key; every combination is run: {algorithm.optimizer.learning_rate: [1e-4, 1e-3]}."""
    best_of: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Not the run itself but the best of n samples of its start, for each n: no learning, and no beta."""

    @property
    def title(self) -> str:
        return self.label or self.name

    @model_validator(mode="after")
    def _consistent(self):
        if self.best_of is not None:
            if self.betas or self.search:
                raise ValueError("best_of: best-of-n does not learn, so it has no betas and no search; remove them")
            if min(self.best_of) < 2:
                raise ValueError("best_of: the best of 1 is the start itself; set 2 or more")
            _check_distinct("best_of", self.best_of)
        for key, values in self.search.items():
            if not values:
                raise ValueError(f"search: {key} has no value to search over; give it one or remove it")
            _check_distinct(f"search: {key}", values)
        _check_distinct("betas", self.betas or ())
        return self


class BudgetConfig(Config):
    """As much for every run of every method; stages that they share are not counted in it."""

    per: Literal["device_seconds", "tokens", "optimizer_steps"]
    """optimizer_steps: of the policy. tokens: completion tokens learned from, each as often as it is passed, at the
    longest completion. device_seconds: as many steps as fit in, by a short pilot run of every method."""
    of_each: int = Field(ge=1)
    """How much each run gets."""


class CompareEvaluation(Config):
    """How every run is judged, whatever its own config says; the data and the reward are those of the configs."""

    prompts: int | None = Field(default=None, ge=1)
    """Held-out prompts; all of them if not set."""
    every_steps: int = Field(default=0, ge=0)
    """Judge online runs also on the way, for the curves of score against cost and KL; 0 is only before and after."""


class CompareConfig(Config):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the comparison and of its folder."""
    output_dir: str = "runs"
    """Where the comparison's folder is made."""
    task: TaskConfig | None = None
    """Embedded task of every run, over what the configs say."""
    methods: tuple[MethodConfig, ...] = Field(min_length=1)
    betas: tuple[Beta, ...] = Field(min_length=1)
    """Weights of the KL: the setting that every method has."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    """Each setting is run with each of them."""
    budget: BudgetConfig | None = None
    """What each run may use; if not set, what the configs say, and the report shows how unequal that was."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Values by dotted key, over every run config and below the overrides of a method."""
    evaluation: CompareEvaluation = CompareEvaluation()
    target_score: float | None = None
    """Score that `cost to reach a score` asks for; if not set, the highest that the best setting of every method reached
    with every seed."""
    price_per_device_hour: float | None = Field(default=None, ge=0)
    """For the money."""

    @model_validator(mode="after")
    def _distinct(self):
        _check_distinct("methods", [method.name for method in self.methods])
        _check_distinct("methods", [method.title for method in self.methods])
        _check_distinct("betas", self.betas)
        _check_distinct("seeds", self.seeds)
        return self

    @field_validator("methods")
    @classmethod
    def _have_files(cls, methods: tuple[MethodConfig, ...]) -> tuple[MethodConfig, ...]:
        for method in methods:
            if not method.run.endswith((".yaml", ".yml")):
                raise ValueError(f"{method.name}: run: {method.run} is no run config; name a .yaml file")
        return methods


def _check_distinct(place: str, values: Any) -> None:
    twice = [value for i, value in enumerate(values) if value in list(values)[:i]]
    if twice:
        raise ValueError(f"{place}: {twice[0]} stands there twice; remove one")


def load_compare(path: str | Path) -> tuple[CompareConfig, Lines]:
    """Read a spec; with it, the line of every key, for what is found wrong later.

    Raises:
        ConfigError: unreadable file, bad YAML, unknown key, wrong type or contradiction; one line each,
            `file:line: dotted.key: problem`.
    """
    tree, lines = read_tree(path, "a comparison")
    spec = parse_as(CompareConfig, tree, str(path), lines)
    for i, method in enumerate(spec.methods):
        if not method_config_path(path, method).is_file():
            place = lines.place(("methods", i, "run"), path)
            raise ConfigError(
                [f"{place}: methods.{i}.run: no such file: {method.run}; it is looked for beside the spec"]
            )
    return spec, lines


def method_config_path(spec: str | Path, method: MethodConfig) -> Path:
    """The run config of a method."""
    return Path(spec).resolve().parent / method.run
