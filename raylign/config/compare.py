"""The spec of a comparison: methods, each a run config, with the same betas and seeds and within the same budget."""

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
    """One method of a comparison: a run config, and the settings that it is run with."""

    name: str = Field(pattern=r"^[A-Za-z0-9+_]+$")
    """Name of the method in files and run ids."""
    run: str
    """Run config (YAML) of the method, relative to the spec."""
    label: str | None = None
    """Name of the method in figures and tables; `name` if not set."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Values by dotted key, applied to the run config."""
    betas: tuple[Beta, ...] | None = None
    """KL coefficients for this method, instead of the spec's."""
    search: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Further settings, values by dotted key; every combination is run: {algorithm.optimizer.learning_rate: [1e-4, 1e-3]}."""
    best_of: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Instead of training, take the best of n samples of the run's starting model, for each n; has no beta."""

    @property
    def title(self) -> str:
        """Name of the method in figures and tables."""
        return self.label or self.name

    @model_validator(mode="after")
    def _consistent(self):
        if self.best_of is not None:
            if self.betas or self.search:
                raise ValueError("best_of: best-of-n does not train, so it has no betas and no search; remove them")
            if min(self.best_of) < 2:
                raise ValueError("best_of: the best of 1 is a plain sample; set 2 or more")
            _check_distinct("best_of", self.best_of)
        for key, values in self.search.items():
            if not values:
                raise ValueError(f"search: {key} has no value to search over; give it one or remove it")
            _check_distinct(f"search: {key}", values)
        _check_distinct("betas", self.betas or ())
        return self


class BudgetConfig(Config):
    """Budget of every run, the same for all methods; stages that runs share do not count."""

    unit: Literal["device_seconds", "tokens", "optimizer_steps"]
    """optimizer_steps: updates of the policy. tokens: completion tokens trained on, once per pass over them, each
    completion counted at its maximum length. device_seconds: as many steps as fit, measured by a short pilot run of each
    method."""
    amount: int = Field(ge=1)
    """Budget of each run, in `unit`."""


class CompareEvaluation(Config):
    """Evaluation settings of every run, instead of those in its config; data and reward are those of the config."""

    prompts: int | None = Field(default=None, ge=1)
    """Number of held-out prompts; all of them if not set."""
    every_steps: int = Field(default=0, ge=0)
    """Evaluate online runs also after every so many steps, for the curves of score against cost and KL; 0 evaluates only
    before and after training."""


class CompareConfig(Config):
    """A comparison of methods, as written in its spec."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the comparison and of its folder."""
    output_dir: str = "runs"
    """Folder in which the comparison's folder is made."""
    task: TaskConfig | None = None
    """Embedded task of every run, instead of the task in its config."""
    methods: tuple[MethodConfig, ...] = Field(min_length=1)
    """Methods to compare."""
    betas: tuple[Beta, ...] = Field(min_length=1)
    """KL coefficients (`algorithm.kl.coef` or `algorithm.beta`), each run with every method."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    """Seeds; each setting of each method is run with each seed."""
    budget: BudgetConfig | None = None
    """Budget of each run; if not set, each config sets its own length, and the report shows how unequal the costs were."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Values by dotted key, applied to every run config before the overrides of its method."""
    evaluation: CompareEvaluation = CompareEvaluation()
    """Evaluation settings of every run."""
    target_score: float | None = None
    """Score used for the cost to reach a score; if not set, the highest score that the best setting of every method
    reached with every seed."""
    price_per_device_hour: float | None = Field(default=None, ge=0)
    """Price of a device-hour, for costs in money."""

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
                raise ValueError(f"{method.name}: run: {method.run} is not a run config; name a .yaml file")
        return methods


def _check_distinct(place: str, values: Any) -> None:
    twice = [value for i, value in enumerate(values) if value in list(values)[:i]]
    if twice:
        raise ValueError(f"{place}: {twice[0]} is listed twice; remove one")


def load_compare(path: str | Path) -> tuple[CompareConfig, Lines]:
    """Read a spec; also return the line of every key, for later error messages.

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
                [f"{place}: methods.{i}.run: no such file: {method.run}; the path is relative to the spec"]
            )
    return spec, lines


def method_config_path(spec: str | Path, method: MethodConfig) -> Path:
    """Return the path of a method's run config."""
    return Path(spec).resolve().parent / method.run
