"""Facts that every algorithm config states about its algorithm, so that no other file needs a table of algorithms."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from raylign.config.base import Config

Reads = Literal["prompts", "sequences", "pairs", "labelled"]
"""Kinds of training rows: prompts to sample from, sequences to imitate, preference pairs, or completions marked good or bad."""
Makes = Literal["policy", "reward_model", "dataset"]
"""Kinds of results that a run can produce for other runs."""
Headline = tuple[tuple[str, str], ...]
"""(metric, label) pairs for progress lines, the most important first."""

OPTIMIZER_METRICS = frozenset({"optimizer/lr", "optimizer/grad_norm", "optimizer/skipped"})
SPEED_METRICS = frozenset({"time/step", "throughput/tokens_per_second"})
LEARNER_METRICS = OPTIMIZER_METRICS | SPEED_METRICS | {"tokens/trained", "time/update_policy"}
ENGINE_METRICS = frozenset(
    {
        *("time/generate", "time/score", "time/load_weights", "tokens/generated", "reward/invalid"),
        *("rollout/engines", "rollout/joined", "rollout/left"),
    }
)


def pair_metrics(prefix: str) -> set[str]:
    """Return the names of the metrics of a pair loss under its prefix, such as `dpo/margin`."""
    names = ("accuracy", "margin", "chosen_reward", "rejected_reward")
    return {f"{prefix}/{name}" for name in names} | {"logprobs/chosen", "logprobs/rejected"}


class Algorithm(Config):
    """Base of the algorithm configs. A concrete class sets the class variables that have no value here."""

    reads: ClassVar[Reads]
    """Kind of training rows."""
    makes: ClassVar[Makes]
    """Kind of result."""
    learner: ClassVar[str | None]
    """Learner of the policy, as `module:Class`, imported only inside its actor; None if nothing is trained."""
    kl_key: ClassVar[str | None]
    """Dotted key of the coefficient that holds the policy near the reference; None if there is none."""
    headline: ClassVar[Headline]
    """Metrics shown in progress lines, the main one first."""
    computes_entropy: ClassVar[bool] = False
    """True if the policy's loss computes the entropy too, which takes memory."""

    @classmethod
    def algorithm_name(cls) -> str:
        """Return the `name` that selects this class in a config."""
        return get_args(cls.model_fields["name"].annotation)[0]

    @property
    def needs_reference(self) -> bool:
        """True if the loss or the reward reads logprobs of a frozen reference model."""
        return False

    @property
    def has_critic(self) -> bool:
        """True if a value model is trained together with the policy."""
        return False

    @property
    def samples_per_item(self) -> int:
        """Rows of tokens that a learner must process together: 2 for preference pairs, else 1."""
        return 2 if self.reads == "pairs" else 1

    @property
    def learns_from_preferences(self) -> bool:
        """True if a dataset of preference pairs is valid training data."""
        return self.reads in ("pairs", "labelled")

    @property
    def held_out_reads(self) -> Reads:
        """Kind of the held-out rows: pairs for a reward model, prompts for everything that is sampled from."""
        return "pairs" if self.makes == "reward_model" else "prompts"

    def num_steps(self, num_rows: int) -> int:
        """Return the number of steps of a run over `num_rows` rows of data."""
        raise NotImplementedError

    def num_optimizer_steps(self, num_rows: int) -> int:
        """Return the optimizer steps of the policy in a run over `num_rows` rows, for learning-rate schedules."""
        return self.num_steps(num_rows)

    def step_metrics(self) -> set[str]:
        """Return the names of the metrics that steps of this algorithm report (docs/metrics.md)."""
        raise NotImplementedError

    def model_paths(self) -> list[tuple[str, str]]:
        """Return (dotted key, path) of every further model that the algorithm names."""
        return []
