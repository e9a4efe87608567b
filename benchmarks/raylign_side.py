"""raylign as a side of a benchmark: its run config for the shared work, and the reader of its results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from harness import Side

from raylign.storage.run_folder import RunFolder

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
# The metric names of the peers, and those of raylign.
LOSSES = {
    "dpo": {"loss": "dpo/loss", "accuracy": "dpo/accuracy"},
    "ppo": {"loss": "policy/loss", "value_loss": "critic/loss", "kl": "kl/k1", "score": "reward/mean"},
}


def side(algorithm: str, settings: dict[str, Any], cores: int) -> Side:
    """Return the side that executes `raylign run` on the shared work; `algorithm` is dpo or ppo."""
    cli = Path(sys.executable).with_name("raylign")

    def command(shared: Path, scratch: Path, dtype: str) -> list[str]:
        if not cli.is_file():
            raise SystemExit(f"{cli} does not exist; install raylign into this environment: pip install -e .")
        tree = {"dpo": _dpo, "ppo": _ppo}[algorithm](settings, shared, dtype, cores)
        path = scratch / f"{algorithm}.yaml"
        path.write_text(yaml.safe_dump(tree | _common(settings, algorithm, scratch), sort_keys=False))
        return [str(cli), "run", str(path)]

    return Side("raylign", command, lambda scratch: _read(scratch / "runs" / algorithm, algorithm, settings))


def _common(settings: dict[str, Any], algorithm: str, scratch: Path) -> dict[str, Any]:
    return {"name": algorithm, "seed": settings["seed"], "output_dir": str(scratch / "runs")}


def _model(shared: Path, dtype: str) -> dict[str, Any]:
    return {
        "path": str(shared / "policy"),
        "tokenizer": str(shared / "tokenizer"),
        "compute_dtype": DTYPES[dtype],
    }


def _optimizer(settings: dict[str, Any], algorithm: str) -> dict[str, Any]:
    rate = settings[algorithm]["learning_rate"]
    return {**settings["optimizer"], "learning_rate": rate, "schedule": "constant", "warmup_ratio": 0.0}


def _dpo(settings: dict[str, Any], shared: Path, dtype: str, cores: int) -> dict[str, Any]:
    dpo = settings["dpo"]
    return {
        "model": _model(shared, dtype),
        "data": {"path": str(shared / "pairs.jsonl")},
        "algorithm": {
            "name": "dpo",
            "epochs": 1,
            "batch_size": dpo["batch_size"],
            "beta": dpo["beta"],
            "optimizer": _optimizer(settings, "dpo"),
        },
        # Reference and policy run one after the other, so each may use all the cores.
        "placement": {"policy": {"num_threads": cores}, "reference": {"num_threads": cores}},
    }


def _ppo(settings: dict[str, Any], shared: Path, dtype: str, cores: int) -> dict[str, Any]:
    ppo = settings["ppo"]
    return {
        "model": _model(shared, dtype),
        "data": {"path": str(shared / "prompts.jsonl")},
        "reward": {"type": "model", "path": str(shared / "reward")},
        "algorithm": {
            "name": "ppo",
            "steps": ppo["steps"],
            "prompts_per_step": ppo["prompts_per_step"],
            "samples_per_prompt": 1,
            "epochs": 1,
            "minibatches": ppo["minibatches"],
            "optimizer": _optimizer(settings, "ppo"),
            "critic": {"optimizer": _optimizer(settings, "ppo"), "value_clip_range": ppo["value_clip_range"]},
            "kl": {"coef": ppo["kl_coef"]},
            "clip_range": ppo["clip_range"],
            "gamma": ppo["gamma"],
            "gae_lambda": ppo["gae_lambda"],
            # The peers use the sampled logprobs too; in bf16 those of the engine differ too much from the learner's.
            "old_logprobs": "engine" if dtype == "fp32" else "learner",
        },
        "rollout": {
            "sampling": {"max_tokens": ppo["completion_tokens"], "temperature": 1.0},
            "max_model_len": ppo["prompt_tokens"] + ppo["completion_tokens"],
        },
    }


def _read(run: Path, algorithm: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of peers/record.py, from metrics.jsonl (one line per step) and summary.json."""
    folder = RunFolder(run)
    lines, seconds = folder.metrics(), folder.summary["section_seconds"]
    # The reference pass of DPO runs before the first step; it counts as work, as for the other sides.
    inner = ("step", "reference") if algorithm == "dpo" else ("step",)
    missing = [name for name in inner if name not in seconds]
    losses = [_losses(line, algorithm) for line in lines if LOSSES[algorithm]["loss"] in line]
    if missing or not losses:
        lacks = ", ".join(missing or LOSSES[algorithm].values())
        raise SystemExit(
            f"{run}: neither metrics.jsonl nor summary.json has {lacks}; update benchmarks/raylign_side.py"
        )
    sizes = settings[algorithm]
    return {
        "losses": losses,
        "seconds_import": None,
        "seconds_inner": sum(seconds[name] for name in inner),
        "items": sizes["num_pairs"] if algorithm == "dpo" else sizes["steps"] * sizes["prompts_per_step"],
        "breakdown": seconds,
    }


def _losses(line: dict[str, float], algorithm: str) -> dict[str, float]:
    return {ours: line[theirs] for ours, theirs in LOSSES[algorithm].items()}
