"""The learner of a reward model."""

from __future__ import annotations

from raylign.algorithms.loss import LossSum
from raylign.algorithms.preference_loss import bradley_terry_loss
from raylign.config import ModelConfig, RewardModelConfig
from raylign.data.batching import micro_batches
from raylign.learners.learner import Learner
from raylign.learners.offline import on_device, padded_pairs, pair_lengths, update_on_pairs
from raylign.learners.spec import LearnerSpec
from raylign.learners.world import World, is_sent_weights
from raylign.models.description import load_tokenizer
from raylign.models.forward import sequence_scores
from raylign.models.infer import autocast, no_gradients
from raylign.models.load import load_reward_model
from raylign.types import LongArray, PairSet


class RewardModelLearner(Learner):
    """A reward model that learns the Bradley-Terry likelihood of preferences; the score is read at the last token."""

    role = "reward_model"

    def __init__(
        self, model: ModelConfig, spec: LearnerSpec, algorithm: RewardModelConfig, world: World | None = None
    ) -> None:
        empty = is_sent_weights(world, spec.sharding)
        super().__init__(load_reward_model(model, spec.seed, empty), load_tokenizer(model), spec, world)
        self.algorithm = algorithm

    def set_data(self, data: PairSet, ref_logprobs: None = None) -> None:
        """Set the dataset."""
        self.data = data

    def update_rows(self, rows: LongArray) -> dict[str, float]:
        """Take one optimizer step on these pairs of the dataset; return its metrics."""
        return update_on_pairs(self, self.data, rows, self._loss)

    def evaluate(self, data: PairSet) -> dict[str, float]:
        """Return the mean metrics of the loss on held-out pairs, without gradients."""
        sums: dict[str, float] = {}
        learning = self.model.training
        self.model.eval()
        budget, ranks = self.spec.micro_batch_tokens, self.ranks
        groups = micro_batches(pair_lengths(data), budget, rows_per_item=2, min_groups=ranks.min_groups)
        with no_gradients(ranks), autocast(self.device, self.compute_dtype):
            for rows, counts in ranks.share_scoring(groups):
                result = self._loss_of(data, rows)
                for name, value in {"loss": result.total, **result.metrics}.items() if counts else ():
                    sums[name] = sums.get(name, 0.0) + float(value)
        self.model.train(learning)
        if ranks.collective:
            sums = self.world.sum_metrics(sums, ranks)
        return {name: value / len(data) for name, value in sums.items()}

    def _loss(self, rows: LongArray) -> LossSum:
        return self._loss_of(self.data, rows)

    def _loss_of(self, data: PairSet, rows: LongArray) -> LossSum:
        tokens, _, lengths = padded_pairs(data, rows, self.device)
        chosen, rejected = sequence_scores(self.model, tokens, lengths).split(len(rows))
        margin = None
        if self.algorithm.margin:
            if data.margin is None:
                raise ValueError("algorithm.margin is true, but the pairs have no margin; load them with margin=True")
            margin = on_device(data.margin[rows], self.device)
        return bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected, margin=margin)
