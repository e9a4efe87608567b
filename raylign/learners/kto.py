"""The learner of Kahneman-Tversky optimisation."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from raylign.algorithms.kto_loss import kto_loss, kto_reference_point
from raylign.algorithms.loss import LossSum
from raylign.config import KTOConfig, ModelConfig
from raylign.learners.offline import (
    RefLogprobs,
    by_length,
    completion_logprobs,
    completion_tokens,
    on_device,
    padded,
)
from raylign.learners.policy import PolicyLearner
from raylign.learners.spec import LearnerSpec
from raylign.learners.world import World
from raylign.types import LabelledSet, LongArray


class KTOLearner(PolicyLearner):
    """A policy that learns from single completions labelled good or bad, by KTO."""

    def __init__(self, model: ModelConfig, spec: LearnerSpec, algorithm: KTOConfig, world: World | None = None) -> None:
        super().__init__(model, spec, world)
        self.algorithm = algorithm

    def set_data(self, data: LabelledSet, ref_logprobs: RefLogprobs) -> None:
        """Set the dataset and its reference logprobs, of the sequences and of the mismatched rows."""
        self.data = data
        self.ref_logprobs, self.ref_mismatched = (on_device(side, self.device) for side in ref_logprobs)

    def update_rows(self, rows: LongArray) -> dict[str, float]:
        """Take one optimizer step on these rows of the dataset; return its metrics."""
        with self.timed("time/update_policy"):
            sequences = self.data.sequences
            groups = by_length(self, rows, sequences.tokens.lengths)
            metrics = self.optimizer_step(groups, len(rows), partial(self._loss, kl=self._reference_point(rows)))
            return _by_kind(metrics) | {"tokens/trained": float(completion_tokens([sequences], rows))}

    def _reference_point(self, rows: LongArray) -> Tensor:
        """Compute KTO's reference point on the whole step, before its micro-batches; the same on every rank."""
        data = self.data.mismatched
        logprobs = self.batch_logprobs(
            data.tokens.padded(rows),
            data.tokens.lengths[rows],
            data.completion_mask.padded(rows, False),
            temperature=1.0,
        )
        sums = logprobs.sum(axis=1, dtype=np.float64).astype(np.float32)
        return kto_reference_point(on_device(sums, self.device), self.ref_mismatched[rows])

    def _loss(self, rows: LongArray, kl: Tensor) -> LossSum:
        tokens, mask, _ = padded(self.data.sequences, rows, self.device)
        return kto_loss(
            logprobs=completion_logprobs(self.model, tokens, mask),
            ref_logprobs=self.ref_logprobs[rows],
            desirable=torch.from_numpy(self.data.desirable[rows]).to(self.device),
            kl=kl,
            beta=self.algorithm.beta,
            desirable_weight=self.algorithm.desirable_weight,
            undesirable_weight=self.algorithm.undesirable_weight,
        )


def _by_kind(metrics: dict[str, float]) -> dict[str, float]:
    """Turn the metrics of each kind of row into means over that kind; drop those of a kind without rows."""
    shares = {kind: metrics[f"kto/num_{kind}"] for kind in ("desirable", "undesirable")}
    means = {name: value for name, value in metrics.items() if not name.startswith("kto/num_")}
    for kind, share in shares.items():
        for name in (f"kto/{kind}_reward", f"logprobs/{kind}"):
            value = means.pop(name)
            if share:
                means[name] = value / share
    return means
