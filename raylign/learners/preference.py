"""Learners of preference pairs: DPO, SimPO, CPO and ORPO. They share the forward pass and differ in the loss."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from raylign.algorithms.loss import LossSum
from raylign.algorithms.preference_loss import cpo_loss, dpo_loss, orpo_loss, simpo_loss
from raylign.algorithms.supervised_loss import cross_entropy_loss
from raylign.config import ModelConfig
from raylign.config.offline import CPOConfig, DPOConfig, ORPOConfig, PreferenceConfig, SimPOConfig
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

A = TypeVar("A", bound=PreferenceConfig)


@dataclass(frozen=True)
class PairLogprobs:
    """Logprobs of n pairs, summed over completions and with gradient, and the number of tokens of each completion."""

    chosen: Tensor  # [n], nats
    rejected: Tensor  # [n], nats
    num_chosen: Tensor  # [n] tokens
    num_rejected: Tensor  # [n] tokens

    @property
    def per_token(self) -> tuple[Tensor, Tensor]:
        """Mean logprobs per token of chosen and rejected: [n] each."""
        return self.chosen / self.num_chosen, self.rejected / self.num_rejected


class PairLearner(PolicyLearner, Generic[A]):
    """A policy that learns from pairs, by the loss of its algorithm plus `sft_coef` times the SFT term.

    The SFT term is the negative logprob per token of the chosen completion (Pang et al. 2024, eq. 1), so that all pairs
    have the same weight, however long they are.
    """

    def __init__(self, model: ModelConfig, spec: LearnerSpec, algorithm: A, world: World | None = None) -> None:
        super().__init__(model, spec, world)
        self.algorithm, self.sft_coef = algorithm, algorithm.sft_coef

    def set_data(self, data: PairSet, ref_logprobs: RefLogprobs | None = None) -> None:
        """Set the dataset; the reference logprobs are for losses that need them."""
        self.data = data

    def update_rows(self, rows: LongArray) -> dict[str, float]:
        """Take one optimizer step on these pairs of the dataset; return its metrics."""
        return update_on_pairs(self, self.data, rows, self._loss)

    @abstractmethod
    def preference_loss(self, pairs: PairLogprobs, rows: LongArray) -> LossSum:
        """Compute the loss of these pairs of the dataset, without the SFT term."""

    def _loss(self, rows: LongArray) -> LossSum:
        tokens, mask, _ = padded_pairs(self.data, rows, self.device)
        logprobs = completion_logprobs(self.model, tokens, mask)
        pairs = PairLogprobs(*logprobs.split(len(rows)), *mask.sum(1).split(len(rows)))
        result = self.preference_loss(pairs, rows)
        if self.sft_coef == 0:
            return result
        sft = cross_entropy_loss(logprobs=pairs.per_token[0])
        return LossSum(result.total + self.sft_coef * sft.total, result.metrics | sft.metrics)


class DPOLearner(PairLearner[DPOConfig]):
    """A policy that learns by direct preference optimisation, with reference logprobs computed beforehand."""

    def set_data(self, data: PairSet, ref_logprobs: RefLogprobs | None = None) -> None:
        """Set the dataset and its reference logprobs, of chosen and of rejected."""
        if ref_logprobs is None:
            raise ValueError("DPO needs the reference logprobs of chosen and rejected")
        super().set_data(data)
        self.ref_chosen, self.ref_rejected = (on_device(side, self.device) for side in ref_logprobs)

    def preference_loss(self, pairs: PairLogprobs, rows: LongArray) -> LossSum:
        ref_chosen, ref_rejected = self.ref_chosen[rows], self.ref_rejected[rows]
        chosen, rejected = pairs.chosen, pairs.rejected
        if self.algorithm.length_normalised:
            chosen, rejected = pairs.per_token
            ref_chosen, ref_rejected = ref_chosen / pairs.num_chosen, ref_rejected / pairs.num_rejected
        return dpo_loss(
            chosen_logprobs=chosen,
            rejected_logprobs=rejected,
            ref_chosen_logprobs=ref_chosen,
            ref_rejected_logprobs=ref_rejected,
            beta=self.algorithm.beta,
            loss=self.algorithm.loss,
            label_smoothing=self.algorithm.label_smoothing,
        )


class SimPOLearner(PairLearner[SimPOConfig]):
    """A policy that learns by simple preference optimisation: logprobs per token, no reference."""

    def preference_loss(self, pairs: PairLogprobs, rows: LongArray) -> LossSum:
        chosen, rejected = pairs.per_token
        return simpo_loss(
            chosen_logprobs=chosen, rejected_logprobs=rejected, beta=self.algorithm.beta, gamma=self.algorithm.gamma
        )


class CPOLearner(PairLearner[CPOConfig]):
    """A policy that learns by contrastive preference optimisation: sums of logprobs, no reference."""

    def preference_loss(self, pairs: PairLogprobs, rows: LongArray) -> LossSum:
        return cpo_loss(
            chosen_logprobs=pairs.chosen,
            rejected_logprobs=pairs.rejected,
            beta=self.algorithm.beta,
            label_smoothing=self.algorithm.label_smoothing,
        )


class ORPOLearner(PairLearner[ORPOConfig]):
    """A policy that learns by odds-ratio preference optimisation: the SFT term is part of it, no reference."""

    def preference_loss(self, pairs: PairLogprobs, rows: LongArray) -> LossSum:
        chosen, rejected = pairs.per_token
        return orpo_loss(chosen_logprobs=chosen, rejected_logprobs=rejected, beta=self.algorithm.beta)
