"""Names of the metrics that a run reports, derived from its config (docs/metrics.md)."""

from __future__ import annotations

from raylign.config.online import OnlineConfig
from raylign.config.run import RunConfig


def end_metrics(config: RunConfig) -> set[str]:
    """Return the names of the numbers in `summary.json` when the run has ended."""
    if config.evaluation is None:
        return {"wall_seconds"}
    kl = set() if config.algorithm.makes == "reward_model" else {"kl"}
    return {"wall_seconds", "score_before", "score_after", *kl}


def step_metrics(config: RunConfig) -> set[str]:
    """Return the names of the metrics that steps report; some, such as evaluations, are not in every step."""
    names = config.algorithm.step_metrics()
    if isinstance(config.algorithm, OnlineConfig) and config.evaluation and config.evaluation.every_steps:
        names |= {"evaluation/score", "evaluation/kl"}
    return names
