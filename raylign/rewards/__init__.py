"""Reward sources, which score completions. Torch is imported only for a reward model."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedTokenizerBase

from raylign.config import FunctionReward, ModelReward, RewardConfig, TaskConfig
from raylign.errors import ConfigError, UserError
from raylign.rewards.code import import_function
from raylign.rewards.function import FunctionSource
from raylign.rewards.source import RewardSource
from raylign.tasks import score_function

__all__ = ["FunctionSource", "RewardSource", "import_function", "make_source"]


def make_source(
    config: RewardConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskConfig | None,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    place: str = "reward",
    num_threads: int | None = None,
) -> RewardSource:
    """Create the reward source that a config describes.

    Args:
        config: `reward`, or `evaluation.reward`; a `run:` path in it is already resolved.
        tokenizer: tokenizer of the policy.
        task: the embedded task, for `type: task`.
        compute_dtype: precision of a reward model's forward pass.
        place: dotted path of `config`, for error messages.
        num_threads: number of torch threads of a reward model.
    Raises:
        UserError: the user's code is not permitted, or the function or model cannot be found or loaded.
    """
    if isinstance(config, FunctionReward):
        if not config.allow_code:
            raise UserError(f"{place}.allow_code: {config.function} runs your own code; set true to permit it")
        return FunctionSource(import_function(config.function, f"{place}.function"), tokenizer, f"{place}.function")
    if isinstance(config, ModelReward):
        from raylign.rewards.model import ModelSource

        return ModelSource(
            config.path,
            tokenizer,
            config.batch_tokens,
            compute_dtype,
            config.trust_remote_code,
            f"{place}.path",
            num_threads,
        )
    if task is None:
        raise ConfigError([f"{place}: type task needs a task section, e.g. task: {{name: sentiment}}"])
    return FunctionSource(score_function(task), tokenizer, place)
