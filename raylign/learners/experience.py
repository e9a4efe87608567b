"""Assembly of rollouts, scores, logprobs and values into the experience that policy-gradient updates read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raylign.algorithms.advantages import gae, shape_rewards, whiten
from raylign.algorithms.baselines import group_advantages, group_spread, leave_one_out_advantages, returns_to_go
from raylign.algorithms.importance import importance_weights
from raylign.algorithms.kl import kl_estimate
from raylign.algorithms.score_shaping import shape_scores
from raylign.config import (
    GRPOConfig,
    OnlineConfig,
    PolicyGradientAlgorithm,
    PPOConfig,
    ReinforcePPConfig,
    RLOOConfig,
)
from raylign.types import BoolArray, Experience, FloatArray, LongArray, RolloutBatch, Scores, concat

_GAP_QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Samples:
    """Samples of one step, joined from its shards. Arrays are `[N, L]` or `[N]`; None if no role computed them."""

    batch: RolloutBatch
    scores: FloatArray  # [N], 0 where invalid
    valid: BoolArray  # [N]
    ref_logprobs: FloatArray | None = None
    values: FloatArray | None = None
    old_logprobs: FloatArray | None = None  # under the learner's policy before the update, not the engine's

    @classmethod
    def join(
        cls,
        rollouts: Sequence[RolloutBatch],
        scores: Sequence[Scores],
        ref_logprobs: Sequence[FloatArray] | None = None,
        values: Sequence[FloatArray] | None = None,
        old_logprobs: Sequence[FloatArray] | None = None,
    ) -> Samples:
        """Join the shards of a step; every argument lists one entry per shard, in the same order."""
        width = max(rollout.tokens.shape[1] for rollout in rollouts)

        def padded(shards: Sequence[FloatArray] | None) -> FloatArray | None:
            if shards is None:
                return None
            return np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in shards])

        valid = np.concatenate([s.valid for s in scores])
        raw = np.where(valid, np.concatenate([s.values for s in scores]), 0.0).astype(np.float32)
        return cls(concat(rollouts), raw, valid, padded(ref_logprobs), padded(values), padded(old_logprobs))

    def take(self, rows: LongArray) -> Samples:
        """Return the given rows."""
        batch = RolloutBatch(**{name: array[rows] for name, array in vars(self.batch).items()})
        rest: dict[str, Any] = {name: a if a is None else a[rows] for name, a in vars(self).items() if name != "batch"}
        return Samples(batch, **rest)


def assemble(
    algorithm: PolicyGradientAlgorithm, samples: Samples, kl_coef: float, max_tokens: int
) -> tuple[Experience, dict[str, float]]:
    """Turn the samples of a step into experience: penalties, KL-shaped rewards, advantages, whitening.

    A row with an invalid score is not learned: its completion mask becomes False. With dynamic sampling, groups whose
    scores are all equal are dropped, and at most `prompts_per_step` groups are kept; `rollout/groups` is the number of
    groups before that limit.

    Args:
        kl_coef: the current weight of the KL, in the reward or in the loss (`algorithm.kl.where`).
        max_tokens: the longest completion that can be sampled.
    Returns:
        The experience of the step and its metrics (over all samples, including those dropped).
    """
    metrics = describe(samples)
    if algorithm.max_extra_batches:
        samples, metrics["rollout/groups"] = _informative(samples, algorithm.prompts_per_step)
    batch = samples.batch
    old = batch.logprobs if samples.old_logprobs is None else samples.old_logprobs
    mask_array = batch.completion_mask & samples.valid[:, None]
    mask = torch.from_numpy(mask_array)
    old_t, values = torch.from_numpy(old), _tensor(samples.values)
    ref = old_t if samples.ref_logprobs is None else torch.from_numpy(samples.ref_logprobs)
    rewards = shape_rewards(
        scores=penalised(algorithm, samples, max_tokens),
        logprobs=old_t,
        ref_logprobs=ref,
        completion_mask=mask,
        kl_coef=kl_coef if algorithm.kl.where == "reward" else 0.0,
        estimator=algorithm.kl.estimator,
    )
    if algorithm.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    groups, valid = torch.from_numpy(batch.prompt_rows), torch.from_numpy(samples.valid)
    advantages, returns = _advantages(algorithm, rewards, values, mask, groups, valid)
    if algorithm.whiten_advantages:
        advantages = whiten(advantages, mask)

    experience = Experience(
        tokens=batch.tokens,
        lengths=batch.lengths,
        completion_mask=mask_array,
        old_logprobs=old,
        advantages=advantages.numpy(),
        values=samples.values,
        returns=None if returns is None else returns.numpy(),
    )
    if algorithm.kl.where == "loss" and samples.ref_logprobs is not None:
        experience = replace(experience, ref_logprobs=samples.ref_logprobs, kl_coef=kl_coef)
    if algorithm.importance:
        weights = importance_weights(
            old_t, torch.from_numpy(batch.logprobs), mask, **algorithm.importance.model_dump(include=_IMPORTANCE)
        )
        experience = replace(experience, importance=weights.numpy())
    return experience, metrics | {"kl/coef": kl_coef, "tokens/trained": float(mask_array.sum())}


_IMPORTANCE = {"mode", "cap", "level"}


def penalised(algorithm: OnlineConfig, samples: Samples, max_tokens: int) -> Tensor:
    """Return the scores minus the penalties for length and for completions that were cut: [N]."""
    overlong = algorithm.overlong
    return shape_scores(
        torch.from_numpy(samples.scores),
        torch.from_numpy(samples.batch.completion_mask.sum(1)),
        torch.from_numpy(samples.batch.finished),
        missing_eos_penalty=algorithm.missing_eos_penalty,
        length_penalty=algorithm.length_penalty,
        overlong_buffer=overlong and overlong.buffer,
        overlong_penalty=overlong.penalty if overlong else 0.0,
        max_tokens=max_tokens,
    )


def describe(samples: Samples) -> dict[str, float]:
    """Return the metrics of the samples, which have the same names for every algorithm."""
    batch = samples.batch
    valid = samples.valid
    scored = samples.scores[valid] if valid.any() else np.full(1, np.nan, np.float32)  # no score is not a score of 0
    metrics = {
        "reward/mean": float(scored.mean()),
        "reward/std": float(scored.std()),
        "reward/invalid": float((~valid).sum()),
        "completion/length": float(batch.completion_mask.sum(1).mean()),
        "completion/finished": float(batch.finished.mean()),
    }
    old = samples.old_logprobs
    if old is not None:  # otherwise only the engine has computed logprobs of the samples
        gap = np.abs(old - batch.logprobs)[batch.completion_mask]
        metrics |= {f"logprob_gap/{name}": float(np.quantile(gap, q)) for name, q in _GAP_QUANTILES.items()}
    if samples.ref_logprobs is not None:
        logprobs, ref = (torch.from_numpy(x) for x in (batch.logprobs if old is None else old, samples.ref_logprobs))
        for estimator in ("k1", "k3"):
            kl = kl_estimate(logprobs, ref, estimator) * torch.from_numpy(batch.completion_mask)
            metrics[f"kl/{estimator}"] = float(kl.sum(1).mean())
    return metrics


def _advantages(
    algorithm: PolicyGradientAlgorithm,
    rewards: Tensor,
    values: Tensor | None,
    mask: Tensor,
    groups: Tensor,
    valid: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Return the advantages [N, L], and the targets of the critic [N, L] if there is a critic."""
    match algorithm:
        case PPOConfig():
            assert values is not None
            return gae(rewards, values, mask, gamma=algorithm.gamma, lam=algorithm.gae_lambda)
        case ReinforcePPConfig():
            return returns_to_go(rewards, mask, algorithm.gamma), None
        case GRPOConfig():
            row = group_advantages(rewards.sum(1), groups, valid, algorithm.scale)
        case RLOOConfig():
            row = leave_one_out_advantages(rewards.sum(1), groups, valid)
    return torch.where(mask, row.unsqueeze(1), 0.0), None


def _informative(samples: Samples, most: int) -> tuple[Samples, float]:
    """Return the rows of the first `most` groups whose scores differ, and the number of all such groups."""
    groups = samples.batch.prompt_rows
    spread = group_spread(
        torch.from_numpy(samples.scores), torch.from_numpy(groups), torch.from_numpy(samples.valid)
    ).numpy()
    unique_groups, first = np.unique(groups[spread], return_index=True)
    kept = unique_groups[np.argsort(first)][:most]  # in the order they were sampled
    return samples.take(np.flatnonzero(spread & np.isin(groups, kept))), float(len(unique_groups))


def _tensor(array: FloatArray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
