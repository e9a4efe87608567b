"""From rollouts, scores, logprobs and values to what the PPO updates read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from raylign.algorithms.advantages import gae, shape_rewards, whiten
from raylign.algorithms.kl import kl_estimate
from raylign.config import PPOConfig
from raylign.types import Experience, FloatArray, RolloutBatch, Scores, concat

_GAP_QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def assemble(
    algorithm: PPOConfig,
    kl_coef: float,
    rollouts: Sequence[RolloutBatch],
    scores: Sequence[Scores],
    old_logprobs: Sequence[FloatArray],
    ref_logprobs: Sequence[FloatArray],
    values: Sequence[FloatArray],
) -> tuple[Experience, dict[str, float]]:
    """KL-shaped rewards -> GAE -> whitening, over all shards of a step.

    A row whose score is not valid is left out of learning: its completion mask becomes False.
    Args:
        rollouts, scores: the shards of the step, in order.
        old_logprobs, ref_logprobs, values: [N, L] per shard.
    Returns:
        The experience of the step and its metrics.
    """
    width = max(r.tokens.shape[1] for r in rollouts)
    batch = concat(rollouts)
    old, ref, value = (_join(x, width) for x in (old_logprobs, ref_logprobs, values))
    valid = np.concatenate([s.valid for s in scores])
    raw = np.where(valid, np.concatenate([s.values for s in scores]), 0.0).astype(np.float32)
    mask_array = batch.completion_mask & valid[:, None]
    penalised = raw - algorithm.missing_eos_penalty * ~batch.finished

    mask = torch.from_numpy(mask_array)
    old_t, ref_t, value_t = map(torch.from_numpy, (old, ref, value))
    rewards = shape_rewards(
        scores=torch.from_numpy(penalised.astype(np.float32)),
        logprobs=old_t,
        ref_logprobs=ref_t,
        completion_mask=mask,
        kl_coef=kl_coef,
        estimator=algorithm.kl.estimator,
    )
    if algorithm.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, value_t, mask, gamma=algorithm.gamma, lam=algorithm.gae_lambda)
    if algorithm.whiten_advantages:
        advantages = whiten(advantages, mask)

    experience = Experience(
        tokens=batch.tokens,
        lengths=batch.lengths,
        completion_mask=mask_array,
        old_logprobs=old,
        values=value,
        advantages=advantages.numpy(),
        returns=returns.numpy(),
    )
    lengths = batch.completion_mask.sum(1)
    scored = raw[valid] if valid.any() else np.full(1, np.nan, dtype=np.float32)  # no score is not a score of 0
    metrics = {
        "reward/mean": float(scored.mean()),
        "reward/std": float(scored.std()),
        "reward/invalid": float((~valid).sum()),
        "kl/coef": kl_coef,
        "completion/length": float(lengths.mean()),
        "completion/finished": float(batch.finished.mean()),
        "tokens/trained": float(mask_array.sum()),
    }
    if algorithm.old_logprobs == "learner":  # otherwise nobody but the engine has scored the samples yet
        gap = np.abs(old - batch.logprobs)[batch.completion_mask]
        metrics |= {f"logprob_gap/{name}": float(np.quantile(gap, q)) for name, q in _GAP_QUANTILES.items()}
    for estimator in ("k1", "k3"):
        kl = kl_estimate(old_t, ref_t, estimator) * torch.from_numpy(batch.completion_mask)
        metrics[f"kl/{estimator}"] = float(kl.sum(1).mean())
    return experience, metrics


def _join(arrays: Sequence[FloatArray], width: int) -> FloatArray:
    return np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays])
