"""Turn any run config into a collect run that samples its model on its prompts and scores with its reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raylign.config.load import Lines, build_config, read_tree
from raylign.config.run import RunConfig
from raylign.errors import ConfigError

DEFAULTS: dict[str, Any] = {"name": "collect", "samples_per_prompt": 8, "keep": "best", "rows": None}


def generate_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    samples: int | None = None,
    keep: str | None = None,
    rows: int | None = None,
) -> RunConfig:
    """Load a run config as the run `<name>-generate`, with the algorithm `collect` and no evaluation or reference.

    The algorithm of a collect config is kept, changed only by the options given. Of another algorithm only
    `prompts_per_step` is kept; samples, keep and rows are then 8, best and None (one pass over the prompts) unless given.

    Args:
        path: YAML file with model, data and reward.
        overrides: `dotted.key=value` of the collect run, applied last.
        samples: completions per prompt.
        keep: completions to keep of each prompt: best, pairs or all.
        rows: number of rows to write.
    Raises:
        ConfigError: see `load_config`; a wrong option is named instead of a line.
    """
    tree, lines = read_tree(path)
    options = {"samples_per_prompt": ("--samples", samples), "keep": ("--keep", keep), "rows": ("--rows", rows)}
    algorithm = _collect(tree.get("algorithm"), lines)
    for key, (option, value) in options.items():
        if value is not None:
            algorithm[key] = value
            lines["algorithm", key] = option
    kept = {key: value for key, value in tree.items() if key not in ("evaluation", "reference")}
    name = {"name": f"{tree['name']}-generate"} if isinstance(tree.get("name"), str) else {}
    for override in overrides:
        if override.partition("=")[0].strip() in ("algorithm", "algorithm.name"):
            raise ConfigError(
                [f"override {override!r}: generate always uses collect; leave it out, or use raylign run"]
            )
    return build_config(path, kept | name | {"algorithm": algorithm}, lines, overrides)


def _collect(given: Any, lines: Lines) -> dict[str, Any]:
    """Return the algorithm section of the collect run, and forget the lines of a section that it replaces."""
    if isinstance(given, dict) and given.get("name") == "collect":
        return dict(given)
    prompts = given.get("prompts_per_step") if isinstance(given, dict) else None
    for loc in [loc for loc in lines if loc[0] == "algorithm" and loc != ("algorithm", "prompts_per_step")]:
        del lines[loc]
    lines["algorithm",] = "generate"
    return DEFAULTS | ({} if prompts is None else {"prompts_per_step": prompts})
