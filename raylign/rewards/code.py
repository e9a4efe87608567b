"""Import of a user's reward function by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raylign.user_code import import_callable


def import_function(spec: str, place: str = "reward.function") -> Callable[..., Any]:
    """Import the reward function that `package.module:function` or `path/to/file.py:function` names.

    Raises:
        UserError: as in `import_callable`.
    """
    return import_callable(spec, place, "function", "def {name}(prompts, completions, **columns)")
