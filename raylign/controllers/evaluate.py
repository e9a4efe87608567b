"""Score a policy on held-out prompts: the same prompts and seeds every time, so that before and after are paired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import ObjectRef

from raylign.controllers.context import Run
from raylign.controllers.keeper import Keeper
from raylign.controllers.roles import Roles

SEED_STEP = 2**40  # stands where a training step would, so that evaluation never reuses a training seed


@dataclass(frozen=True)
class Evaluation:
    """Means over the held-out prompts."""

    score: float
    score_std: float  # over completions
    num_scored: int
    num_invalid: int
    kl: float | None  # per completion, nats, against the reference; None without one
    length: float  # tokens
    finished: float  # share that ended with a stop token
    samples: list[dict[str, Any]]

    @property
    def score_stderr(self) -> float:
        return self.score_std / max(1, self.num_scored) ** 0.5

    def numbers(self) -> dict[str, Any]:
        """Everything but the texts, as JSON."""
        names = ("score", "score_std", "score_stderr", "num_scored", "num_invalid", "kl", "length", "finished")
        return {name: getattr(self, name) for name in names}


def evaluate(
    run: Run, roles: Roles, prompts: ObjectRef, num_prompts: int, version: int, label: str, keeper: Keeper
) -> Evaluation:
    """One completion of every held-out prompt, scored by the evaluator (or the run's reward).

    Args:
        version: the policy version that the engines must hold.
        label: for progress and errors: before, after, step 20.
        keeper: replaces what dies meanwhile.
    """
    config = run.config
    assert config.evaluation
    size, keep = config.evaluation.batch_size, config.evaluation.keep_samples
    judge = roles["evaluator"] if "evaluator" in roles else roles["reward"]
    run.view.status(f"evaluating {label}")

    def submit() -> list[ObjectRef]:
        parts = []
        for i, first in enumerate(range(0, num_prompts, size)):
            rows = np.arange(first, min(first + size, num_prompts))
            batch = roles["rollout"].submit(prompts, rows, 1, SEED_STEP, version).batch
            scores = judge[i].score.remote(batch, prompts)
            ref = roles["reference"][i].logprobs.remote(batch) if "reference" in roles else None
            parts.append(judge[i].evaluation_part.remote(batch, prompts, scores, ref, max(0, keep - first)))
        return parts

    with run.stage("evaluate"):
        done = keeper.persist(submit, "generate", version, f"evaluation {label}", interruptible=True)
    return _gather(done)


def _gather(parts: list[dict[str, Any]]) -> Evaluation:
    def join(name: str) -> list[float]:
        return [value for part in parts for value in part[name]]

    scores = np.array(join("scores"))
    has_kl = all(part["kl"] is not None for part in parts)
    return Evaluation(
        score=float(scores.mean()) if len(scores) else float("nan"),
        score_std=float(scores.std()) if len(scores) else float("nan"),
        num_scored=len(scores),
        num_invalid=sum(part["num_invalid"] for part in parts),
        kl=float(np.mean(join("kl"))) if has_kl else None,
        length=float(np.mean(join("lengths"))),
        finished=float(np.mean(join("finished"))),
        samples=[sample for part in parts for sample in part["samples"]],
    )
