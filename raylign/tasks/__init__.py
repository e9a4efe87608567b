"""Embedded tasks: each makes its own data, an untrained model, and knows the true reward. Cheap to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raylign.config import SentimentTask
from raylign.tasks import sentiment
from raylign.tasks.files import TaskFiles

__all__ = ["TaskFiles", "prepare", "score_function"]


def prepare(task: SentimentTask, directory: Path) -> TaskFiles:
    """Write the task's data and untrained model into `directory`, or find them there.

    The directory appears whole or not at all, and the same task always makes the same bytes of data. The caller names the
    directory after the task's content (a hash of its config), so one that exists is used as it is.

    Raises:
        ConfigError: the task cannot be built as configured.
        UserError: `directory` holds something else.
    """
    return sentiment.prepare(task, directory)


def score_function(task: SentimentTask) -> Callable[..., list[float]]:
    """The task's true reward, `score(prompts, completions, **columns) -> list[float]`."""
    return {"sentiment": sentiment.score}[task.name]
