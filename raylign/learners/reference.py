"""The frozen reference model: logprobs of rollouts (online) and of whole preference datasets (offline)."""

from __future__ import annotations

import time

import numpy as np
import torch

from raylign.config import ModelConfig
from raylign.models.infer import batch_logprobs
from raylign.models.load import DTYPES, load_frozen
from raylign.types import FloatArray, LabelledSet, PairSet, RolloutBatch, SequenceSet


class ReferenceModel:
    """A model with frozen weights that computes logprobs.

    Args:
        micro_batch_tokens: number of padded tokens in one forward pass.
        temperature: sampling temperature of the rollouts whose logprobs it computes.
        num_threads: number of torch threads; torch's default if None.
    """

    def __init__(
        self, model: ModelConfig, micro_batch_tokens: int, temperature: float = 1.0, num_threads: int | None = None
    ) -> None:
        if num_threads:
            torch.set_num_threads(num_threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_frozen(model)
        self.model.to(device=device)  # pyright: ignore[reportCallIssue]  (transformers hides the signature)
        self.micro_batch_tokens = micro_batch_tokens
        self.temperature = temperature
        self.compute_dtype = DTYPES[model.compute_dtype]
        self._busy = 0.0

    def logprobs(self, batch: RolloutBatch) -> FloatArray:
        """Compute logprobs of the sampled tokens: [N, L], nats, 0 outside the mask."""
        return self._logprobs(batch.tokens, batch.lengths, batch.completion_mask, self.temperature)

    def sequence_logprobs(self, data: SequenceSet, first: int, last: int) -> FloatArray:
        """Sum the completion logprobs of rows first..last-1, at temperature 1: [last - first], nats."""
        rows = range(first, last)
        tokens = data.tokens.padded(rows)
        mask = data.completion_mask.padded(rows, False)
        logprobs = self._logprobs(tokens, data.tokens.lengths[first:last], mask, 1.0)
        return logprobs.sum(axis=1, dtype=np.float64).astype(np.float32)

    def dataset_logprobs(self, data: PairSet | LabelledSet, first: int, last: int) -> tuple[FloatArray, FloatArray]:
        """Compute `sequence_logprobs` of both sides of a dataset: [last - first] each."""
        left, right = (self.sequence_logprobs(side, first, last) for side in data.sides)
        return left, right

    def _logprobs(self, tokens, lengths, mask, temperature: float) -> FloatArray:
        start = time.perf_counter()
        result = batch_logprobs(
            self.model,
            tokens,
            lengths,
            mask,
            temperature=temperature,
            max_tokens=self.micro_batch_tokens,
            compute_dtype=self.compute_dtype,
        )
        self._busy += time.perf_counter() - start
        return result

    def pop_metrics(self) -> dict[str, float]:
        """Return the seconds that this model worked since the last call."""
        busy, self._busy = self._busy, 0.0
        return {"time/ref_logprobs": busy}
