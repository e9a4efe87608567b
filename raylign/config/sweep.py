"""`SweepConfig`: one run config, what is varied in it, and what is wanted of it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raylign.config.base import Config


class Parameter(Config):
    """The values that a key of the run config takes: exactly one of `grid`, `choice`, `uniform`, `loguniform`, `integer`."""

    grid: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Every value, each with every value of the other grids."""
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """One of the values, drawn."""
    uniform: tuple[float, float] | None = None
    """Drawn between two numbers."""
    loguniform: tuple[float, float] | None = None
    """Drawn between two numbers above 0, their logarithm uniform."""
    integer: tuple[int, int] | None = None
    """A whole number, drawn between two, both included."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Vary the key only in trials where these keys have these values."""

    @property
    def kind(self) -> str:
        """How it varies."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def samples(self) -> list[Any]:
        """Values that show whether the key takes such: all that are listed, or the ends."""
        return list(getattr(self, self.kind))

    @model_validator(mode="after")
    def _one_kind(self):
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} given; write one of {', '.join(KINDS)}")
        if self.kind in ("uniform", "loguniform", "integer"):
            low, high = self.samples
            if not low < high:
                raise ValueError(f"{self.kind}: {low:g} to {high:g} is no range; write [low, high]")
            if self.kind == "loguniform" and low <= 0:
                raise ValueError(f"loguniform: {low:g} has no logarithm; start above 0, or use uniform")
        return self


KINDS = ("grid", "choice", "uniform", "loguniform", "integer")


class FIFOConfig(Config):
    """Every trial runs to its end."""

    type: Literal["fifo"] = "fifo"


class ASHAConfig(Config):
    """Trials that are behind at a rung are ended (Li et al. 2020): after `grace_steps` x reduction_factor^k steps those
    go on that are among the best 1 / reduction_factor of all that came so far."""

    type: Literal["asha"]
    grace_steps: int = Field(default=1, ge=1)
    """Steps before a trial may be ended: the first rung."""
    reduction_factor: float = Field(default=3.0, gt=1)
    """One of so many goes on at each rung."""


class PBTConfig(Config):
    """Population based training (Jaderberg et al. 2017): from time to time the worst trials take over the state of the
    best and go on with other values."""

    type: Literal["pbt"]
    every_steps: int = Field(ge=1)
    """Steps between two looks at the population; a multiple of the run's checkpoint.every_steps."""
    mutate: tuple[str, ...] = Field(min_length=1)
    """Searched keys that change at a take-over."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """Share of the population that is replaced, and share that it is replaced by."""


SchedulerConfig = Annotated[FIFOConfig | ASHAConfig | PBTConfig, Field(discriminator="type")]


class BudgetConfig(Config):
    trials: int | None = Field(default=None, ge=1)
    """A sweep of more trials is refused."""
    seconds: float | None = Field(default=None, gt=0)
    """What runs after so long is ended, with its last commit kept; counted from each start of the sweep."""


class SweepConfig(Config):
    name: str = Field(pattern=r"^[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """Name of the sweep and of its folder."""
    run: str | tuple[str, ...]
    """Run config that is varied, relative to this file; several are a grid, with `when: {run: ...}` for keys of one."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """dotted.key: value, for every trial."""
    search: dict[str, Parameter] = Field(min_length=1)
    """What is varied, by dotted key of the run config."""
    trials: int = Field(default=1, ge=1)
    """Draws of the keys that are not a grid; with a grid, for each of its points."""
    seed: int = Field(default=0, ge=0)
    """What is drawn follows from it."""
    metric: str
    """What trials are compared by: `score_after`, `kl`, or a metric of a step (docs/metrics.md), of which the last counts."""
    mode: Literal["max", "min"] = "max"
    """Which of two values is better."""
    scheduler: SchedulerConfig = FIFOConfig()
    searcher: Literal["random", "optuna"] = "random"
    """random draws all trials before the first begins. optuna draws each from what the ended ones came to (TPE); `trials`
    is their number then, and a grid is a choice."""
    budget: BudgetConfig = BudgetConfig()
    max_failures: int = Field(default=1, ge=0)
    """Deaths of a trial that are followed by another try, from its last commit."""

    @property
    def runs(self) -> tuple[str, ...]:
        return (self.run,) if isinstance(self.run, str) else self.run

    @property
    def is_drawn(self) -> bool:
        """Whether any key is."""
        return any(parameter.kind != "grid" for parameter in self.search.values())

    @field_validator("run")
    @classmethod
    def _some(cls, run: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not run or (len(set(run)) < len(run) and not isinstance(run, str)):
            raise ValueError("names no run config, or one twice")
        return run

    @model_validator(mode="after")
    def _consistent(self):
        if self.searcher == "optuna" and isinstance(self.scheduler, PBTConfig):
            raise ValueError("searcher: optuna: pbt changes the values on the way, by itself; use random")
        if self.trials > 1 and not self.is_drawn and self.searcher == "random":
            raise ValueError(
                f"trials: {self.trials} of a grid alone would be the same run {self.trials} times; leave it out, or "
                "search over the seed: {grid: [0, 1, 2]}"
            )
        if isinstance(self.scheduler, PBTConfig):
            for key in self.scheduler.mutate:
                if key not in self.search:
                    raise ValueError(f"scheduler.mutate: {key} is not searched; add it to search")
                if key not in MUTABLE:
                    raise ValueError(
                        f"scheduler.mutate: {key} cannot change in the middle of a run: {_why_fixed(key)}; PBT can "
                        f"change {', '.join(MUTABLE)}"
                    )
        return self


MUTABLE = (
    "algorithm.optimizer.learning_rate",
    "algorithm.optimizer.weight_decay",
    "algorithm.optimizer.max_grad_norm",
    "algorithm.critic.optimizer.learning_rate",
    "algorithm.critic.value_clip_range",
    "algorithm.kl.coef",
    "algorithm.beta",
    "algorithm.clip_range",
    "algorithm.clip_range_high",
    "algorithm.entropy_coef",
    "algorithm.gae_lambda",
    "algorithm.label_smoothing",
    "algorithm.sft_coef",
)
"""Keys that learners read anew when they take up a commit, and that nothing in a commit depends on."""


def _why_fixed(key: str) -> str:
    section, _, last = key.rpartition(".")
    if last == "seed":
        return "the order of the data and all samples follow from it"
    if section.startswith(("task", "data", "model", "reference", "reward", "evaluation")):
        return "it decides what the run began with"
    if last in ("steps", "epochs", "max_steps", "minibatches", "schedule", "warmup_ratio"):
        return "the learning-rate schedule runs over all steps"
    if last in ("prompts_per_step", "samples_per_prompt", "batch_size"):
        return "a commit's place in the data is counted in batches"
    return "a commit does not say what of it would stay true"


def is_better(mode: str, one: float, other: float) -> bool:
    """Whether `one` is better than `other`; what is not a number never is."""
    return not math.isnan(one) and (math.isnan(other) or (one > other if mode == "max" else one < other))
