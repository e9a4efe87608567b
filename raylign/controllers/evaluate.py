"""Score a policy on held-out prompts: the same prompts and seeds every time, so that before and after are paired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import ObjectRef

from raylign.actors.fleet import RolloutFleet
from raylign.actors.role_groups import RewardGroup
from raylign.controllers.context import Run
from raylign.controllers.roles import Roles, required
from raylign.controllers.supervisor import Supervisor

SEED_STEP = 2**40  # takes the place of a training step, so that evaluation never reuses a training seed


@dataclass(frozen=True)
class Evaluation:
    """Means over the held-out prompts, and some samples."""

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
        """Standard error of the score."""
        return self.score_std / max(1, self.num_scored) ** 0.5

    def numbers(self) -> dict[str, Any]:
        """Return everything but the texts, as JSON."""
        names = ("score", "score_std", "score_stderr", "num_scored", "num_invalid", "kl", "length", "finished")
        return {name: getattr(self, name) for name in names}

    def step_metrics(self) -> dict[str, float]:
        """Return the metrics of an evaluation during training."""
        return {"evaluation/score": self.score, "evaluation/kl": self.kl or 0.0}


def evaluate(
    run: Run, roles: Roles, prompts: ObjectRef, num_prompts: int, version: int, label: str, supervisor: Supervisor
) -> Evaluation:
    """Sample one completion of every held-out prompt and score it with the evaluator, or the run's reward.

    Args:
        version: the policy version that the engines must hold.
        label: for progress and errors: before, after, step 20.
        supervisor: replaces the actors that die meanwhile.
    """
    config = run.config
    assert config.evaluation
    size, keep = config.evaluation.batch_size, config.evaluation.keep_samples
    evaluator = required(roles.evaluator if roles.evaluator is not None else roles.reward, RewardGroup)
    rollout, reference = required(roles.rollout, RolloutFleet), roles.reference
    run.view.status(f"evaluating {label}")

    def submit() -> list[ObjectRef]:
        parts = []
        for i, first in enumerate(range(0, num_prompts, size)):
            rows = np.arange(first, min(first + size, num_prompts))
            batch = rollout.submit(prompts, rows, 1, SEED_STEP, version).batch
            scores = evaluator.submit_scores(i, batch, prompts)
            ref_logprobs = reference.submit_logprobs(i, batch) if reference is not None else None
            kept = max(0, keep - first)
            parts.append(evaluator.submit_evaluation_part(i, batch, prompts, scores, ref_logprobs, kept))
        return parts

    with run.timed("evaluate"):
        done = supervisor.retry_on_actor_loss(submit, "generate", version, f"evaluation {label}", interruptible=True)
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
