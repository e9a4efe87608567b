"""`RolloutEngine`, the protocol of every generation engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from raylign.config import RolloutConfig, SamplingConfig
from raylign.errors import UserError
from raylign.types import FloatArray, IntArray

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Completion:
    """A sampled continuation of a prompt, T >= 1 tokens."""

    token_ids: IntArray  # [T], including the stop token that ended it
    logprobs: FloatArray  # [T], nats, of each token under the distribution it was drawn from
    finished: bool  # True if a stop token ended it, False if it was cut by length


class RolloutEngine(Protocol):
    """A language model that samples: token ids in, token ids out, without a tokenizer and without policy versions."""

    max_model_len: int | None
    """Longest prompt + completion in tokens; None if the architecture sets no limit."""

    def generate(
        self,
        prompts: Sequence[NDArray[np.int32]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        stop_token_ids: tuple[int, ...],
    ) -> list[Completion]:
        """Sample a completion for each (prompt, seed), and return them in the same order.

        A completion ends at the first of `stop_token_ids` (and at nothing else: the model's own generation
        settings are ignored) or after `sampling.max_tokens`. Its logprobs are `log_softmax(logits / temperature)`
        in fp32, after top-k and top-p if these are set. A sample depends on the weights, its prompt and its seed;
        the rest of the batch affects it only through floating-point rounding.

        `prompts` are int32 [P_i] with P_i >= 1 and P_i + max_tokens <= max_model_len; seeds lie in [0, 2**63).
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Replace the whole model, or the adapter of an engine created with `lora`.

        Names are Hugging Face's, or peft's (as in `adapter_model.safetensors`) for an adapter, which does nothing until
        it is loaded; uint16 arrays are the bits of bfloat16.

        Raises:
            ValueError: a name is unknown, a shape is wrong or a parameter is missing. After any error, weights must be
                loaded again before the engine is used.
        """
        ...

    def sleep(self) -> None:
        """Free the GPU's memory; the weights are kept in the host's memory."""
        ...

    def wake(self) -> None:
        """Undo `sleep`; must be called before any other method."""
        ...

    def close(self) -> None:
        """Free the model and its memory."""
        ...


def context_length(model_config: Any, rollout: RolloutConfig) -> int | None:
    """Return the longest prompt + completion in tokens, from a transformers model config; None if there is no limit.

    Raises:
        UserError: `rollout.max_model_len` is longer than the model's context.
    """
    # Absent from architectures without a limit (state-space models, ALiBi).
    own: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    asked = rollout.max_model_len
    if asked is not None and own is not None and asked > own:
        raise UserError(f"rollout.max_model_len: {asked} is more than the model's context of {own}; set {own} or less")
    return asked or own
