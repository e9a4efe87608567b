"""Which metrics a run will report, from its config: those of docs/metrics.md that its algorithm has."""

from __future__ import annotations

from typing import cast

from raylign.config.algorithm import ONLINE, CollectConfig, OnlineAlgorithm, PolicyGradientAlgorithm
from raylign.config.offline import OfflineConfig
from raylign.config.online import GRPOConfig
from raylign.config.run import RunConfig

_OPTIMIZER = {"optimizer/lr", "optimizer/grad_norm", "optimizer/skipped"}
_SPEED = {"time/step", "throughput/tokens_per_second"}
_LEARNER = {*_OPTIMIZER, *_SPEED, "tokens/trained", "time/update_policy"}
_ENGINE = {"time/generate", "time/score", "time/load_weights", "tokens/generated", "reward/invalid"}
_FLEET = {"rollout/engines", "rollout/joined", "rollout/left"}
_SAMPLES = {"reward/mean", "reward/std", "completion/length", "completion/finished"}
_PAIRS = ("accuracy", "margin", "chosen_reward", "rejected_reward")
_OFFLINE = {
    "sft": {"sft/nll"},
    "reward_model": {"reward_model/accuracy", "reward_model/margin", "reward_model/chosen_score"},
    "dpo": {*(f"dpo/{name}" for name in _PAIRS), "logprobs/chosen", "logprobs/rejected"},
    "simpo": {*(f"simpo/{name}" for name in _PAIRS), "logprobs/chosen", "logprobs/rejected"},
    "orpo": {"orpo/accuracy", "orpo/margin", "logprobs/chosen", "logprobs/rejected"},
    "kto": {
        *("kto/desirable_reward", "kto/undesirable_reward", "kto/accuracy", "kto/kl"),
        *("logprobs/desirable", "logprobs/undesirable", "kto/num_desirable", "kto/num_undesirable"),
    },
}


def end_metrics(config: RunConfig) -> set[str]:
    """Of `summary.json`, when the run has ended."""
    judged = config.evaluation is not None
    kl = judged and config.algorithm.name != "reward_model"
    return {"wall_seconds", *(["score_before", "score_after"] if judged else []), *(["kl"] if kl else [])}


def step_metrics(config: RunConfig) -> set[str]:
    """Of its steps (some not of every step: evaluations, and what only some data has)."""
    algorithm = config.algorithm
    if isinstance(algorithm, CollectConfig):
        return {"collect/rows", "collect/score", *_ENGINE, *_FLEET, *_SPEED}
    if isinstance(algorithm, OfflineConfig):
        extra = {"sft/nll"} if getattr(algorithm, "sft_coef", 0) else set()
        return {*_LEARNER, *_OFFLINE[algorithm.name], f"{algorithm.name}/loss", *extra}
    assert algorithm.name in ONLINE
    return _online(config, cast(OnlineAlgorithm, algorithm))


def _online(config: RunConfig, algorithm: OnlineAlgorithm) -> set[str]:
    found = {*_LEARNER, *_ENGINE, *_FLEET, *_SAMPLES, "policy/loss", "time/sync", "time/export_weights"}
    found |= {"time/idle_fraction"}
    if config.evaluation and config.evaluation.every_steps:
        found |= {"evaluation/score", "evaluation/kl"}
    if algorithm.name == "online_dpo":
        dpo = {f"dpo/{name}" for name in _PAIRS}
        return (
            found
            | dpo
            | {"kl/k1", "kl/k3", "online_dpo/pairs", "time/ref_logprobs", "logprobs/chosen", "logprobs/rejected"}
        )
    return found | _policy_gradient(algorithm)


def _policy_gradient(algorithm: PolicyGradientAlgorithm) -> set[str]:
    found = {f"policy/{name}" for name in ("clip_fraction", "approx_kl", "ratio", "entropy")} | {"kl/coef"}
    if algorithm.kl.coef > 0:
        found |= {"kl/k1", "kl/k3", "time/ref_logprobs"}
    if algorithm.kl.where == "loss" and algorithm.kl.coef > 0:
        found |= {"policy/kl_loss"}
    if algorithm.old_logprobs == "learner":
        found |= {"logprob_gap/p50", "logprob_gap/p99", "logprob_gap/max", "time/logprobs"}
    if algorithm.dual_clip:
        found |= {"policy/dual_clip_fraction"}
    if algorithm.importance:
        found |= {"policy/importance"}
    if isinstance(algorithm, GRPOConfig) and algorithm.dynamic_sampling:
        found |= {"rollout/groups"}
    if algorithm.name == "ppo":
        found |= {f"critic/{name}" for name in ("loss", *_OPTIMIZER)}
        found |= {"value/mean", "value/error", "value/clip_fraction", "time/values", "time/update_critic"}
    return found
