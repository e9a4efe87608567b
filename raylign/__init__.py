"""raylign: align language models on Ray, and know whether PPO or DPO serves you better.

from raylign import load_config, run
result = run(load_config("recipes/dpo_sentiment.yaml"))
print(result.summary["score_before"], result.summary["score_after"], result.folder)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raylign.version import __version__

__all__ = ["RunConfig", "RunResult", "__version__", "load_config", "parse_config", "run"]

if TYPE_CHECKING:
    from raylign.config import RunConfig, load_config, parse_config
    from raylign.controllers.run import RunResult, run


def __getattr__(name: str) -> Any:
    """Names are imported when they are used: `import raylign` stays light, and so does the command line."""
    if name in ("RunConfig", "load_config", "parse_config"):
        from raylign import config

        return getattr(config, name)
    if name in ("RunResult", "run"):
        from raylign.controllers import run as module

        return getattr(module, name)
    raise AttributeError(f"module 'raylign' has no attribute {name!r}")
