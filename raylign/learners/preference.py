"""Learners of preference pairs: DPO, SimPO and ORPO. They share the forward pass and differ in the loss of its result."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from raylign.algorithms.loss import LossSum
from raylign.algorithms.preference_loss import dpo_loss, orpo_loss, simpo_loss
from raylign.algorithms.supervised_loss import cross_entropy_loss
from raylign.config import DPOConfig, ModelConfig, ORPOConfig, SimPOConfig
from raylign.learners.offline import (
    RefLogprobs,
    completion_logprobs,
    on_device,
    padded_pairs,
    update_on_pairs,
)
from raylign.learners.policy import PolicyLearner
from raylign.learners.spec import LearnerSpec
from raylign.learners.world import World
from raylign.types import LongArray, PairSet


@dataclass(frozen=True)
class Sides:
    """One side each: logprobs [n], sums over the completion with gradient, and its number of tokens [n]."""

    chosen: Tensor
    rejected: Tensor
    num_chosen: Tensor
    num_rejected: Tensor

    @property
    def per_token(self) -> tuple[Tensor, Tensor]:
        """Mean logprobs of chosen and rejected: [n] each."""
        return self.chosen / self.num_chosen, self.rejected / self.num_rejected


class PairLearner(PolicyLearner):
    """One optimizer step on pairs: the loss of the algorithm, and `sft_coef` times the SFT term.

    The SFT term is the negative logprob per token of the chosen completion (Pang et al. 2024, eq. 1): every pair
    weighs the same, however long it is.
    """

    sft_coef: float

    def set_data(self, data: PairSet, ref_logprobs: RefLogprobs | None = None) -> None:
        self.data = data

    def update_rows(self, rows: LongArray) -> dict[str, float]:
        """One optimizer step on these pairs of the dataset."""
        return update_on_pairs(self, self.data, rows, self._loss)

    @abstractmethod
    def preference_loss(self, sides: Sides, rows: LongArray) -> LossSum:
        """Loss of these pairs of the dataset, without the SFT term."""

    def _loss(self, rows: LongArray) -> LossSum:
        tokens, mask, _ = padded_pairs(self.data, rows, self.device)
        logprobs = completion_logprobs(self.model, tokens, mask)
        sides = Sides(*logprobs.split(len(rows)), *mask.sum(1).split(len(rows)))
        result = self.preference_loss(sides, rows)
        if self.sft_coef == 0:
            return result
        sft = cross_entropy_loss(logprobs=sides.per_token[0])
        return LossSum(result.total + self.sft_coef * sft.total, result.metrics | sft.metrics)


class DPOLearner(PairLearner):
    """Direct preference optimisation with reference logprobs that were computed before."""

    def __init__(self, model: ModelConfig, spec: LearnerSpec, algorithm: DPOConfig, world: World | None = None) -> None:
        super().__init__(model, spec, world)
        self.algorithm, self.sft_coef = algorithm, algorithm.sft_coef

    def set_data(self, data: PairSet, ref_logprobs: RefLogprobs | None = None) -> None:
        """`ref_logprobs`: of chosen and rejected."""
        if ref_logprobs is None:
            raise ValueError("DPO needs the reference logprobs of chosen and rejected")
        super().set_data(data)
        self.ref_chosen, self.ref_rejected = (on_device(side, self.device) for side in ref_logprobs)

    def preference_loss(self, sides: Sides, rows: LongArray) -> LossSum:
        ref_chosen, ref_rejected = self.ref_chosen[rows], self.ref_rejected[rows]
        chosen, rejected = sides.chosen, sides.rejected
        if self.algorithm.length_normalised:
            chosen, rejected = sides.per_token
            ref_chosen, ref_rejected = ref_chosen / sides.num_chosen, ref_rejected / sides.num_rejected
        return dpo_loss(
            chosen_logprobs=chosen,
            rejected_logprobs=rejected,
            ref_chosen_logprobs=ref_chosen,
            ref_rejected_logprobs=ref_rejected,
            beta=self.algorithm.beta,
            loss=self.algorithm.loss,
            label_smoothing=self.algorithm.label_smoothing,
        )


class SimPOLearner(PairLearner):
    """Simple preference optimisation: logprobs per token, no reference."""

    def __init__(
        self, model: ModelConfig, spec: LearnerSpec, algorithm: SimPOConfig, world: World | None = None
    ) -> None:
        super().__init__(model, spec, world)
        self.algorithm, self.sft_coef = algorithm, algorithm.sft_coef

    def preference_loss(self, sides: Sides, rows: LongArray) -> LossSum:
        chosen, rejected = sides.per_token
        return simpo_loss(
            chosen_logprobs=chosen, rejected_logprobs=rejected, beta=self.algorithm.beta, gamma=self.algorithm.gamma
        )


class ORPOLearner(PairLearner):
    """Odds ratio preference optimisation: the SFT term is part of the method, no reference."""

    def __init__(
        self, model: ModelConfig, spec: LearnerSpec, algorithm: ORPOConfig, world: World | None = None
    ) -> None:
        super().__init__(model, spec, world)
        self.algorithm, self.sft_coef = algorithm, algorithm.sft_coef

    def preference_loss(self, sides: Sides, rows: LongArray) -> LossSum:
        chosen, rejected = sides.per_token
        return orpo_loss(chosen_logprobs=chosen, rejected_logprobs=rejected, beta=self.algorithm.beta)
