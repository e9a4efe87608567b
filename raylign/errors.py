"""Typed errors. `UserError` and its children end the program with exit code 2 and no traceback."""

from __future__ import annotations


class RaylignError(Exception):
    """Base class of every error that raylign raises on purpose; its message is written for the user."""

    exit_code = 1


class UserError(RaylignError):
    """An error that the user can fix in the input; each message is one line: place, problem, fix."""

    exit_code = 2


class ConfigError(UserError):
    """A run configuration is wrong; `problems` holds one line for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self):
        return type(self), (self.problems,)


class DataError(UserError):
    """A data file, row or column is wrong; the message begins with `file:line` or with the dataset and row."""


class PlacementError(UserError):
    """The cluster has no room for the actors of a run; the message names those that do not fit."""


class DeadlineError(RaylignError):
    """A wait ran past its deadline; the message names the actor, the deadline, the step and what was missing."""


class StaleEngineError(RaylignError):
    """A rollout engine was asked to sample from a policy version that it has not acknowledged."""


class NonFiniteError(RaylignError):
    """Too many optimizer steps in a row were skipped because the loss or a gradient was not finite."""


class CheckpointError(RaylignError):
    """A commit on disk is missing, is incomplete or does not match its manifest."""


class FailureBudgetError(RaylignError):
    """More actors died than `limits.max_failures` allows; the last commit is valid and can be resumed."""


class Interrupted(RaylignError):
    """The run was asked to stop (Ctrl-C or SIGTERM); it saved its state and released every actor."""

    exit_code = 130


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def folded(error: BaseException) -> str:
    """Return the whole message of an error on one line, or the name of its class if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
