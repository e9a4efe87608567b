"""From any run config to the collect run that samples its model, on its prompts, for its reward."""

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
    """The run `<name>-generate`: `collect` in the place of the config's own algorithm, without evaluation or reference.

    A collect config keeps its algorithm and takes the options that are given. Of any other algorithm
    `prompts_per_step` is kept; there samples, keep and rows are 8, best and None (every prompt once) if not given.

    Args:
        path: YAML file; it needs model, data and reward.
        overrides: `dotted.key=value` of the collect run, applied last.
    Raises:
        ConfigError: see `load_config`; an option is named in the place of a line.
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
            raise ConfigError([f"override {override!r}: generate is always collect; leave it out, or use raylign run"])
    return build_config(path, kept | name | {"algorithm": algorithm}, lines, overrides)


def _collect(given: Any, lines: Lines) -> dict[str, Any]:
    if isinstance(given, dict) and given.get("name") == "collect":
        return dict(given)
    prompts = given.get("prompts_per_step") if isinstance(given, dict) else None
    for loc in [loc for loc in lines if loc[0] == "algorithm" and loc != ("algorithm", "prompts_per_step")]:
        del lines[loc]
    lines["algorithm",] = "generate"
    return DEFAULTS | ({} if prompts is None else {"prompts_per_step": prompts})
