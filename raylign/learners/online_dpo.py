"""The learner of online DPO: pairs of the policy's own samples, labelled by the reward source."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raylign.algorithms.loss import LossSum
from raylign.algorithms.preference_loss import dpo_loss
from raylign.config import OnlineDPOConfig
from raylign.learners.experience import Samples, describe, penalised
from raylign.learners.offline import completion_logprobs
from raylign.learners.passes import run_passes
from raylign.learners.policy import OnlinePolicyLearner
from raylign.types import FloatArray, LongArray, PairExperience


class OnlineDPOLearner(OnlinePolicyLearner[OnlineDPOConfig]):
    """A policy that takes DPO steps on pairs of its own samples, labelled by the reward source (Guo et al. 2024)."""

    def assemble(self, kl_coef: float, parts: dict[str, Any]) -> tuple[PairExperience, dict[str, float]]:
        """Turn the shards of a step into labelled pairs; return them and the metrics of the step.

        Args:
            kl_coef: not used; beta is the weight of DPO.
            parts: the arguments of `Samples.join`, each a list of shards.
        """
        samples = Samples.join(**parts)
        scores = penalised(self.algorithm, samples, self.sampling.max_tokens).numpy()
        pairs = _pairs(samples)
        if self.algorithm.label == "best":  # equal scores prefer neither
            pairs = pairs[scores[pairs[:, 0]] != scores[pairs[:, 1]]]
        first_wins = self._label(scores[pairs[:, 0]] - scores[pairs[:, 1]], int(samples.batch.policy_version[0]))
        swapped = first_wins < 0.5
        rows = np.where(swapped[:, None], pairs[:, ::-1], pairs).reshape(-1)
        taken = samples.take(rows)
        assert taken.ref_logprobs is not None
        experience = PairExperience(
            tokens=taken.batch.tokens,
            lengths=taken.batch.lengths,
            completion_mask=taken.batch.completion_mask,
            ref_logprobs=taken.ref_logprobs.sum(1, dtype=np.float64).astype(np.float32),
            probability=np.maximum(first_wins, 1 - first_wins).astype(np.float32),
        )
        trained = {"tokens/trained": float(taken.batch.completion_mask.sum())}
        return experience, describe(samples) | trained | {"online_dpo/pairs": float(len(pairs))}

    def update(self, experience: PairExperience) -> dict[str, float]:
        """Make `epochs` passes over the step's pairs, in `minibatches` optimizer steps each; return mean metrics."""
        with self.timed("time/update_policy"):
            return run_passes(
                self,
                self.algorithm,
                experience.lengths.reshape(-1, 2).max(1),
                lambda pairs: float(len(pairs)),
                lambda pairs: self._loss(experience, pairs),
                "policy",
                rows_per_item=2,
            )

    def _label(self, gap: FloatArray, version: int) -> NDArray[np.float64]:
        """Return the probability that the first sample of a pair is preferred, by the difference of scores: [P]."""
        if self.algorithm.label == "best":
            return np.where(gap > 0, 1.0, 0.0)
        probability = 1 / (1 + np.exp(-np.clip(gap.astype(np.float64), -50, 50)))
        if self.algorithm.label == "soft":
            return probability
        uniform = np.random.default_rng([self.spec.seed, version]).random(len(gap))
        return np.where(uniform < probability, 1.0, 0.0)

    def _loss(self, experience: PairExperience, pairs: LongArray) -> LossSum:
        rows = np.concatenate([2 * pairs, 2 * pairs + 1])
        width = int(experience.lengths[rows].max())
        tokens = torch.from_numpy(experience.tokens[rows, :width]).to(self.device).long()
        mask = torch.from_numpy(experience.completion_mask[rows, :width]).to(self.device)
        logprobs = completion_logprobs(self.model, tokens, mask, self.sampling.temperature)
        chosen, rejected = logprobs.split(len(pairs))
        ref_chosen, ref_rejected = torch.from_numpy(experience.ref_logprobs[rows]).to(self.device).split(len(pairs))
        soft = self.algorithm.label == "soft"
        return dpo_loss(
            chosen_logprobs=chosen,
            rejected_logprobs=rejected,
            ref_chosen_logprobs=ref_chosen,
            ref_rejected_logprobs=ref_rejected,
            beta=self.algorithm.beta,
            loss=self.algorithm.loss,
            label_smoothing=self.algorithm.label_smoothing,
            chosen_probability=torch.from_numpy(experience.probability[pairs]).to(self.device) if soft else None,
        )


def _pairs(samples: Samples) -> LongArray:
    """Return the row numbers of neighbours with two valid scores and different completions: [P, 2]."""
    pairs = np.arange(len(samples.valid)).reshape(-1, 2)
    first, second = pairs.T
    tokens, mask = samples.batch.tokens, samples.batch.completion_mask
    differ = (tokens[first] != tokens[second]).any(1) | (mask[first] != mask[second]).any(1)
    return pairs[samples.valid[pairs].all(1) & differ]
