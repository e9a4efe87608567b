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
    """One sampled continuation of one prompt, T >= 1 tokens."""

    token_ids: IntArray  # [T], with the stop token that ended it
    logprobs: FloatArray  # [T], nats, of each token under the distribution it was drawn from
    finished: bool  # True where a stop token ended it, False where it was cut by length


class RolloutEngine(Protocol):
    """A language model that samples. Token ids in, token ids out; it knows no tokenizer and no versions."""

    max_model_len: int | None
    """Longest prompt + completion in tokens; None where the architecture sets no limit."""

    def generate(
        self,
        prompts: Sequence[NDArray[np.int32]],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        stop_token_ids: tuple[int, ...],
    ) -> list[Completion]:
        """One completion for each (prompt, seed), in their order.

        A completion ends at the first of `stop_token_ids` (and at nothing else: the model's own generation
        settings are not read) or after `sampling.max_tokens`. Its logprobs are `log_softmax(logits / temperature)`
        in fp32, after top-k and top-p where these are set. A sample follows from the weights, its prompt and its
        seed; the rest of the batch moves it only by floating-point rounding.

        `prompts` are int32 [P_i] with P_i >= 1 and P_i + max_tokens <= max_model_len; seeds lie in [0, 2**63).
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, NDArray[Any]]]) -> None:
        """Replace the whole model. Hugging Face parameter names; uint16 arrays are bfloat16 bits.

        An engine made with `lora` replaces its adapter instead, which does nothing until then: peft's names, as in
        `adapter_model.safetensors`.

        Raises ValueError for an unknown name, a wrong shape or a parameter that did not come. After any error the
        engine must be loaded again before it is used.
        """
        ...

    def sleep(self) -> None:
        """Leave the GPU's memory to others; the weights stay, in the host's."""
        ...

    def wake(self) -> None:
        """Undo `sleep`; before anything else is asked."""
        ...

    def close(self) -> None:
        """Free the model and its memory."""
        ...


def context_length(model_config: Any, rollout: RolloutConfig) -> int | None:
    """Tokens of the longest prompt + completion, given a transformers model config; None where there is no limit.

    Raises UserError if `rollout.max_model_len` is more than the model was made for.
    """
    # Absent from architectures without a limit (state-space models, ALiBi).
    own: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    asked = rollout.max_model_len
    if asked is not None and own is not None and asked > own:
        raise UserError(f"rollout.max_model_len: {asked} is more than the model's context of {own}; set {own} or less")
    return asked or own
