"""raylign: align language models on Ray, and know whether PPO or DPO serves you better.

from raylign import load_config, run
result = run(load_config("recipes/dpo_sentiment.yaml"))
print(result.summary["score_before"], result.summary["score_after"], result.folder)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raylign.version import __version__

__all__ = [
    "Completion",
    "RolloutEngine",
    "RunConfig",
    "RunResult",
    "Sink",
    "Trial",
    "__version__",
    "load_config",
    "load_sweep",
    "parse_config",
    "ray_session",
    "read_metrics",
    "run",
    "run_trials",
    "samples_table",
    "sweep",
]

if TYPE_CHECKING:
    from raylign.actors.session import ray_session
    from raylign.config import RunConfig, load_config, parse_config
    from raylign.config.search_space import load_sweep
    from raylign.controllers.run import RunResult, run
    from raylign.controllers.show import samples_table
    from raylign.rollout.engine import Completion, RolloutEngine
    from raylign.tracking import Sink, read_metrics
    from raylign.tuning.sweep import sweep
    from raylign.tuning.trials import Trial, run_trials

_MODULES = {
    "raylign.actors.session": ("ray_session",),
    "raylign.config": ("RunConfig", "load_config", "parse_config"),
    "raylign.config.search_space": ("load_sweep",),
    "raylign.controllers.run": ("RunResult", "run"),
    "raylign.controllers.show": ("samples_table",),
    "raylign.rollout.engine": ("Completion", "RolloutEngine"),
    "raylign.tracking": ("Sink", "read_metrics"),
    "raylign.tuning.sweep": ("sweep",),
    "raylign.tuning.trials": ("Trial", "run_trials"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import raylign` stays fast, and so does the command line."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'raylign' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
