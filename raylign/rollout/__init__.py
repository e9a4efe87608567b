"""Sampling of completions and their logprobs from prompts: one protocol, a vLLM and a transformers engine."""

from raylign.rollout.engine import Completion, RolloutEngine
from raylign.rollout.factory import make_engine
from raylign.rollout.worker import RolloutWorker

__all__ = ["Completion", "RolloutEngine", "RolloutWorker", "make_engine"]
