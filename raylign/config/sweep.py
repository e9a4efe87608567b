"""`SweepConfig`: which keys of a run config are varied, how, and by which metric trials are compared."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raylign.config.base import Config


class Parameter(Config):
    """The values that one key of the run config may take: exactly one of `grid`, `choice`, `uniform`, `loguniform`, `integer`."""

    grid: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Values that are all tried, in every combination with the other grids."""
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Values of which each trial draws one."""
    uniform: tuple[float, float] | None = None
    """Lower and upper bound of a random number."""
    loguniform: tuple[float, float] | None = None
    """Lower and upper bound of a random number whose logarithm is uniform; both above 0."""
    integer: tuple[int, int] | None = None
    """Lower and upper bound of a random integer, both included."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Vary this key only in trials where the keys given here have the values given here."""

    @property
    def kind(self) -> str:
        """Name of the field that is set: `grid`, `choice`, `uniform`, `loguniform` or `integer`."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def samples(self) -> list[Any]:
        """The listed values of a grid or choice; the bounds of a range."""
        return list(getattr(self, self.kind))

    @model_validator(mode="after")
    def _one_kind(self):
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'nothing'} given; write one of {', '.join(KINDS)}")
        if self.kind in ("uniform", "loguniform", "integer"):
            low, high = self.samples
            if not low < high:
                raise ValueError(f"{self.kind}: {low:g} to {high:g} is not a range; write [low, high]")
            if self.kind == "loguniform" and low <= 0:
                raise ValueError(f"loguniform: {low:g} has no logarithm; start above 0, or use uniform")
        return self


KINDS = ("grid", "choice", "uniform", "loguniform", "integer")


class FIFOConfig(Config):
    """Run every trial to its end, in the order of the trials."""

    type: Literal["fifo"] = "fifo"


class ASHAConfig(Config):
    """Stop trials that are behind (ASHA, Li et al. 2020).

    Rungs are at `grace_steps` x `reduction_factor`^k steps. At each rung a trial continues only if it is among the best
    1 / `reduction_factor` of all trials that have reached this rung so far.
    """

    type: Literal["asha"]
    grace_steps: int = Field(default=1, ge=1)
    """Steps before a trial may be stopped: the first rung."""
    reduction_factor: float = Field(default=3.0, gt=1)
    """At each rung, about one in this many trials continues."""


class PBTConfig(Config):
    """Population based training (Jaderberg et al. 2017): every few steps the worst trials copy the state of the best and
    continue with changed values."""

    type: Literal["pbt"]
    every_steps: int = Field(ge=1)
    """Steps of a generation, after which the trials are compared; a multiple of the run's checkpoint.every_steps."""
    mutate: tuple[str, ...] = Field(min_length=1)
    """Searched keys whose values change when a trial copies another."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """Share of the trials that are replaced, and share of the trials that they copy."""


SchedulerConfig = Annotated[FIFOConfig | ASHAConfig | PBTConfig, Field(discriminator="type")]


class SweepBudgetConfig(Config):
    """Limits of a sweep."""

    max_trials: int | None = Field(default=None, ge=1)
    """Refuse a sweep that would run more trials."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Stop trials that still run this many seconds after the sweep started or resumed; `--resume` continues them from
    their last commit."""


class SweepConfig(Config):
    """A sweep file: one or more run configs, the keys that vary, and the metric to compare by."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    """Name of the sweep and of its folder."""
    run: str | tuple[str, ...]
    """Run config that is varied, relative to this file. A list is searched as a grid; limit a key to one of the configs
    with `when: {run: ...}`."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Values by dotted key, applied to the run config of every trial."""
    search: dict[str, Parameter] = Field(min_length=1)
    """Searched parameters, by dotted key of the run config."""
    trials: int = Field(default=1, ge=1)
    """Number of random draws for each point of the grid; without a grid, the number of trials."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random draws."""
    metric: str
    """Metric that trials are compared by: `score_after`, `kl`, or a metric of a step (docs/metrics.md), whose last value
    counts."""
    mode: Literal["max", "min"] = "max"
    """Direction of the metric: max if higher values are better, min if lower ones are."""
    scheduler: SchedulerConfig = FIFOConfig()
    """Rule by which trials are stopped early or changed while they run."""
    searcher: Literal["random", "optuna"] = "random"
    """random draws all trials before the first one starts. optuna suggests each trial from the results of the finished
    ones (TPE); `trials` is then the number of trials, and a grid is sampled like a choice."""
    budget: SweepBudgetConfig = SweepBudgetConfig()
    """Limits on the number of trials and on time."""
    max_failures: int = Field(default=1, ge=0)
    """Number of times that a failed trial is tried again, from its last commit."""

    @property
    def runs(self) -> tuple[str, ...]:
        """The run configs that are varied, also if there is only one."""
        return (self.run,) if isinstance(self.run, str) else self.run

    @property
    def is_random(self) -> bool:
        """True if any searched key is drawn at random rather than from a grid."""
        return any(parameter.kind != "grid" for parameter in self.search.values())

    @field_validator("run")
    @classmethod
    def _names_runs(cls, run: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not run:
            raise ValueError("no run config is named; name one")
        if not isinstance(run, str) and len(set(run)) < len(run):
            raise ValueError("a run config is listed twice; remove one")
        return run

    @model_validator(mode="after")
    def _consistent(self):
        if self.searcher == "optuna" and isinstance(self.scheduler, PBTConfig):
            raise ValueError("searcher: optuna: pbt changes the values during the run by itself; use searcher: random")
        if self.trials > 1 and not self.is_random and self.searcher == "random":
            raise ValueError(
                f"trials: with a grid alone, {self.trials} trials would repeat the same run {self.trials} times; leave "
                "it out, or search over the seed: {grid: [0, 1, 2]}"
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
"""Keys that PBT may change: learners read them again when they restore a commit, and no commit depends on them."""


def _why_fixed(key: str) -> str:
    section, _, last = key.rpartition(".")
    if last == "seed":
        return "it decides the order of the data and all samples"
    if section.startswith(("task", "data", "model", "reference", "reward", "evaluation")):
        return "it decides what the run started from"
    if last in ("steps", "epochs", "max_steps", "minibatches", "schedule", "warmup_ratio"):
        return "the learning-rate schedule runs over all steps"
    if last in ("prompts_per_step", "samples_per_prompt", "batch_size"):
        return "a commit counts its place in the data in batches"
    return "a commit may depend on it"


def is_better(mode: str, value: float, other: float) -> bool:
    """Return whether `value` is better than `other`; NaN is worse than any number."""
    return not math.isnan(value) and (math.isnan(other) or (value > other if mode == "max" else value < other))
