"""The policy learner of PPO, GRPO, RLOO and REINFORCE++: one clipped objective, different advantages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raylign.algorithms.aggregate import normaliser, token_weights
from raylign.algorithms.logprobs import token_logprobs
from raylign.algorithms.loss import LossSum
from raylign.algorithms.policy_loss import clipped_policy_loss
from raylign.config import PolicyGradientAlgorithm
from raylign.learners.experience import Samples, assemble
from raylign.learners.passes import run_passes
from raylign.learners.policy import OnlinePolicyLearner
from raylign.models.forward import completion_logits
from raylign.types import Experience, FloatArray, LongArray, RolloutBatch


class PolicyGradientLearner(OnlinePolicyLearner[PolicyGradientAlgorithm]):
    """A policy that learns by the clipped objective of Schulman et al. 2017, eq. 7."""

    def logprobs(self, batch: RolloutBatch) -> FloatArray:
        """Compute logprobs of the sampled tokens with the current weights: [N, L], nats, 0 outside the mask."""
        with self.timed("time/logprobs"):
            return self.batch_logprobs(batch.tokens, batch.lengths, batch.completion_mask, self.sampling.temperature)

    def assemble(self, kl_coef: float, parts: dict[str, Any]) -> tuple[Experience, dict[str, float]]:
        """Turn the shards of a step into experience; return it and the metrics of the step.

        Args:
            kl_coef: the current weight of the KL.
            parts: the arguments of `Samples.join`, each a list of shards.
        """
        return assemble(self.algorithm, Samples.join(**parts), kl_coef, self.sampling.max_tokens)

    def update(self, experience: Experience) -> dict[str, float]:
        """Make `epochs` passes over the step's samples, in `minibatches` optimizer steps each; return mean metrics."""
        aggregate = self.algorithm.aggregate
        mask = torch.from_numpy(experience.completion_mask)
        weights = token_weights(mask, aggregate)
        with self.timed("time/update_policy"):
            return run_passes(
                self,
                self.algorithm,
                experience.lengths,
                lambda rows: normaliser(mask[rows], aggregate, self.sampling.max_tokens),
                lambda rows: self._loss(experience, weights, rows),
                "policy",
                num_elements=lambda rows: float(mask[rows].sum()),
            )

    def _loss(self, experience: Experience, weights: Tensor, rows: LongArray) -> LossSum:
        algorithm = self.algorithm
        width = int(experience.lengths[rows].max())

        def pick(array: Any) -> Tensor:
            return torch.as_tensor(array[rows, :width]).to(self.device)

        mask = pick(experience.completion_mask)
        tokens = pick(experience.tokens).long()
        scored = token_logprobs(
            completion_logits(self.model, tokens, mask),
            tokens[mask],
            temperature=self.sampling.temperature,
            with_entropy=True,
            entropy_gradient=algorithm.entropy_coef > 0,
        )
        importance, ref = experience.importance, experience.ref_logprobs
        return clipped_policy_loss(
            logprobs=scored.logprobs,
            old_logprobs=pick(experience.old_logprobs)[mask],
            advantages=pick(experience.advantages)[mask],
            weights=pick(weights)[mask],
            importance=None if importance is None else pick(importance)[mask],
            clip_range=algorithm.clip_range,
            clip_range_high=algorithm.clip_range_high,
            dual_clip=algorithm.dual_clip,
            entropy=scored.entropy,
            entropy_coef=algorithm.entropy_coef,
            ref_logprobs=None if ref is None else pick(ref)[mask],
            kl_coef=experience.kl_coef,
            kl_estimator=algorithm.kl.estimator,
        )
