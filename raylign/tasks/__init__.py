"""Embedded tasks: each generates its own data and model, and knows the true reward. Cheap to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raylign.config import TaskConfig
from raylign.tasks import exact, exact_reward, sentiment, summarize
from raylign.tasks.files import TaskFiles

__all__ = ["TaskFiles", "prepare", "score_function"]

_PREPARE: dict[str, Callable[[Any, Path], TaskFiles]] = {
    "exact": exact.prepare,
    "sentiment": sentiment.prepare,
    "summarize": summarize.prepare,
}
_SCORE: dict[str, Callable[[Any], Callable[..., list[float]]]] = {
    "exact": exact_reward.ExactReward,
    "sentiment": lambda task: sentiment.score,
    "summarize": lambda task: summarize.score,
}


def prepare(task: TaskConfig, directory: Path) -> TaskFiles:
    """Write the task's data and model into `directory`, unless they are there already.

    The directory appears complete or not at all, and the same task always gives the same bytes of data. The caller
    names the directory by a hash of the task's config, so an existing directory is used unchanged.

    Raises:
        ConfigError: the task cannot be built as configured.
        UserError: `directory` has other content.
    """
    return _PREPARE[task.name](task, directory)


def score_function(task: TaskConfig) -> Callable[..., list[float]]:
    """Return the task's true reward, `score(prompts, completions, **columns) -> list[float]`."""
    return _SCORE[task.name](task)
