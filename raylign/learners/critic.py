"""PPO's critic: the value of the state before each completion token."""

from __future__ import annotations

import torch

from raylign.algorithms.loss import LossSum
from raylign.algorithms.value_loss import ppo_value_loss
from raylign.config import CriticAlgorithm, ModelConfig
from raylign.learners.learner import Learner
from raylign.learners.passes import run_passes
from raylign.learners.spec import LearnerSpec
from raylign.learners.world import World, is_sent_weights
from raylign.models.description import load_tokenizer
from raylign.models.forward import completion_values
from raylign.models.infer import batch_values
from raylign.models.load import load_critic
from raylign.types import Experience, FloatArray, LongArray, RolloutBatch


class CriticLearner(Learner):
    """PPO's critic and its optimizer."""

    role = "critic"

    def __init__(
        self, model: ModelConfig, spec: LearnerSpec, algorithm: CriticAlgorithm, world: World | None = None
    ) -> None:
        empty = is_sent_weights(world, spec.sharding)
        super().__init__(load_critic(model, spec.seed, empty), load_tokenizer(model), spec, world)
        self.algorithm = algorithm

    def values(self, batch: RolloutBatch) -> FloatArray:
        """Compute values with the current weights: [N, L], 0 outside the mask."""
        with self.timed("time/values"):
            return batch_values(
                self.model,
                batch.tokens,
                batch.lengths,
                batch.completion_mask,
                max_tokens=self.spec.micro_batch_tokens,
                compute_dtype=self.compute_dtype,
                ranks=self.ranks,
            )

    def update(self, experience: Experience) -> dict[str, float]:
        """Train on the step's samples, as the policy does, with the clipped value loss; return mean metrics."""
        mask = experience.completion_mask
        with self.timed("time/update_critic"):
            return run_passes(
                self,
                self.algorithm,
                experience.lengths,
                lambda rows: float(mask[rows].sum()),
                lambda rows: self._loss(experience, rows),
                "critic",
            )

    def _loss(self, experience: Experience, rows: LongArray) -> LossSum:
        width = int(experience.lengths[rows].max())
        assert experience.values is not None
        assert experience.returns is not None
        arrays = (experience.completion_mask, experience.tokens, experience.values, experience.returns)
        mask, tokens, values, returns = (torch.from_numpy(a[rows, :width]).to(self.device) for a in arrays)
        return ppo_value_loss(
            values=completion_values(self.model, tokens.long(), mask),
            old_values=values[mask],
            returns=returns[mask],
            clip_range=self.algorithm.critic.value_clip_range,
        )
