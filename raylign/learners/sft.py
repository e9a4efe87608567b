"""The learner of supervised fine-tuning."""

from __future__ import annotations

from raylign.algorithms.logprobs import token_logprobs
from raylign.algorithms.loss import LossSum
from raylign.algorithms.supervised_loss import cross_entropy_loss
from raylign.config import ModelConfig, SFTConfig
from raylign.learners.offline import by_length, completion_tokens, padded
from raylign.learners.policy import PolicyLearner
from raylign.learners.spec import LearnerSpec
from raylign.learners.world import World
from raylign.models.forward import completion_logits
from raylign.types import LongArray, SequenceSet


class SFTLearner(PolicyLearner):
    """A policy that learns by the cross-entropy of the completion tokens."""

    def __init__(self, model: ModelConfig, spec: LearnerSpec, algorithm: SFTConfig, world: World | None = None) -> None:
        super().__init__(model, spec, world)

    def set_data(self, data: SequenceSet, ref_logprobs: None = None) -> None:
        """Set the dataset."""
        self.data = data

    def update_rows(self, rows: LongArray) -> dict[str, float]:
        """Take one optimizer step on these rows of the dataset; return its metrics."""
        with self.timed("time/update_policy"):
            num_tokens = completion_tokens([self.data], rows)
            groups = by_length(self, rows, self.data.tokens.lengths)
            return self.optimizer_step(groups, num_tokens, self._loss) | {"tokens/trained": float(num_tokens)}

    def _loss(self, rows: LongArray) -> LossSum:
        tokens, mask, _ = padded(self.data, rows, self.device)
        logits = completion_logits(self.model, tokens, mask)
        return cross_entropy_loss(logprobs=token_logprobs(logits, tokens[mask]).logprobs)
