"""The summary of a finished run."""

from __future__ import annotations

from typing import Any

from raylign.controllers.context import Run
from raylign.controllers.usage import reserved_seconds, summarised
from raylign.pipeline.stages import output_name
from raylign.version import __version__


def summarise(run: Run, scores: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return scores, time, tokens and memory of a run as JSON.

    Args:
        scores: evaluations by label, before and after.
        steps: number of steps of the whole run.
    """
    config, totals = run.config, run.totals
    before, after = scores.get("before"), scores.get("after")
    return {
        "name": config.name,
        "algorithm": config.algorithm.name,
        "seed": config.seed,
        "steps": steps,
        "score_before": before and before["score"],
        "score_after": after and after["score"],
        "kl": after and after["kl"],
        "evaluation": scores,
        "wall_seconds": run.wall(),
        "section_seconds": {name.removeprefix("time/"): v for name, v in sorted(totals.items()) if _is_section(name)},
        "reserved_seconds": reserved_seconds(totals),
        "tokens": {name.removeprefix("tokens/"): int(v) for name, v in totals.items() if name.startswith("tokens/")},
        "memory": summarised(run.memory),
        "output": output_name(config),
        "raylign": __version__,
    }


def _is_section(name: str) -> bool:
    return name.startswith("time/") and name != "time/idle_fraction"
