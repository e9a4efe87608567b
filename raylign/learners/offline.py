"""Learners that read a fixed dataset: SFT, DPO and the reward model. Each is its loss and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raylign.algorithms.logprobs import sequence_sums, token_logprobs
from raylign.algorithms.loss import LossSum
from raylign.algorithms.preference_loss import bradley_terry_loss, dpo_loss
from raylign.algorithms.supervised_loss import cross_entropy_loss
from raylign.config import DPOConfig, ModelConfig, RewardModelConfig, SFTConfig
from raylign.data.batching import micro_batches
from raylign.learners.learner import Learner, LearnerSpec
from raylign.learners.policy import PolicyLearner
from raylign.learners.world import World
from raylign.models.forward import completion_logits, sequence_scores
from raylign.models.infer import autocast
from raylign.models.load import load_reward_model, load_tokenizer
from raylign.types import FloatArray, LongArray, PairSet, SequenceSet

PairLogprobs = tuple[FloatArray, FloatArray]  # chosen [P], rejected [P]: sums over the completion


class SFTLearner(PolicyLearner):
    """Cross-entropy of the completion tokens."""

    def __init__(self, model: ModelConfig, spec: LearnerSpec, algorithm: SFTConfig, world: World | None = None) -> None:
        super().__init__(model, spec, world)

    def set_data(self, data: SequenceSet, ref_logprobs: None = None) -> None:
        self.data = data

    def update_rows(self, rows: LongArray) -> dict[str, float]:
        """One optimizer step on these rows of the dataset."""
        with self.timed("time/update_policy"):
            num_tokens = int(sum(self.data.completion_mask[int(row)].sum() for row in rows))
            groups = _by_length(rows, self.data.tokens.lengths, self.spec.micro_batch_tokens)
            metrics = self.optimizer_step(groups, num_tokens, self._loss)
            return metrics | {"tokens/trained": float(num_tokens)}

    def _loss(self, rows: LongArray) -> LossSum:
        tokens, mask, _ = _padded(self.data, rows, self.device)
        targets = tokens[mask]
        logits = completion_logits(self.model, tokens, mask)
        return cross_entropy_loss(logprobs=token_logprobs(logits, targets, with_entropy=False).logprobs)


class DPOLearner(PolicyLearner):
    """Direct preference optimisation with reference logprobs that were computed before."""

    def __init__(self, model: ModelConfig, spec: LearnerSpec, algorithm: DPOConfig, world: World | None = None) -> None:
        super().__init__(model, spec, world)
        self.beta = algorithm.beta

    def set_data(self, data: PairSet, ref_logprobs: PairLogprobs) -> None:
        self.data = data
        self.ref_chosen, self.ref_rejected = (torch.from_numpy(np.array(x)).to(self.device) for x in ref_logprobs)

    def update_rows(self, rows: LongArray) -> dict[str, float]:
        """One optimizer step on these pairs of the dataset."""
        with self.timed("time/update_policy"):
            groups = _by_length(rows, _pair_lengths(self.data), self.spec.micro_batch_tokens, rows_per_item=2)
            metrics = self.optimizer_step(groups, len(rows), self._loss)
            return metrics | {"tokens/trained": float(_completion_tokens(self.data, rows))}

    def _loss(self, rows: LongArray) -> LossSum:
        tokens, mask, _ = _padded_pairs(self.data, rows, self.device)
        logits = completion_logits(self.model, tokens, mask)
        logprobs = token_logprobs(logits, tokens[mask], with_entropy=False).logprobs
        sums = sequence_sums(logprobs, mask.nonzero()[:, 0], len(tokens))
        chosen, rejected = sums.split(len(rows))
        index = torch.from_numpy(rows).to(self.device)
        return dpo_loss(
            chosen_logprobs=chosen,
            rejected_logprobs=rejected,
            ref_chosen_logprobs=self.ref_chosen[index],
            ref_rejected_logprobs=self.ref_rejected[index],
            beta=self.beta,
        )


class RewardModelLearner(Learner):
    """Bradley-Terry likelihood of the chosen completion; the score is read at the last token."""

    role = "reward_model"

    def __init__(
        self, model: ModelConfig, spec: LearnerSpec, algorithm: RewardModelConfig, world: World | None = None
    ) -> None:
        super().__init__(load_reward_model(model, spec.seed), load_tokenizer(model), spec, world)

    def set_data(self, data: PairSet, ref_logprobs: None = None) -> None:
        self.data = data

    def update_rows(self, rows: LongArray) -> dict[str, float]:
        """One optimizer step on these pairs of the dataset."""
        with self.timed("time/update_policy"):
            groups = _by_length(rows, _pair_lengths(self.data), self.spec.micro_batch_tokens, rows_per_item=2)
            metrics = self.optimizer_step(groups, len(rows), self._loss)
            return metrics | {"tokens/trained": float(_completion_tokens(self.data, rows))}

    def evaluate(self, data: PairSet) -> dict[str, float]:
        """Mean metrics of the loss on held-out pairs, without gradients."""
        sums: dict[str, float] = {}
        learning = self.model.training
        self.model.eval()
        with torch.inference_mode(), autocast(self.device, self.compute_dtype):
            for rows in micro_batches(_pair_lengths(data), self.spec.micro_batch_tokens, rows_per_item=2):
                result = self._loss_of(data, rows)
                for name, value in {"loss": result.total, **result.metrics}.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        self.model.train(learning)
        return {name: value / len(data) for name, value in sums.items()}

    def _loss(self, rows: LongArray) -> LossSum:
        return self._loss_of(self.data, rows)

    def _loss_of(self, data: PairSet, rows: LongArray) -> LossSum:
        tokens, _, lengths = _padded_pairs(data, rows, self.device)
        chosen, rejected = sequence_scores(self.model, tokens, lengths).split(len(rows))
        return bradley_terry_loss(chosen_scores=chosen, rejected_scores=rejected)


def _pair_lengths(data: PairSet) -> LongArray:
    return np.maximum(data.chosen.tokens.lengths, data.rejected.tokens.lengths)


def _completion_tokens(data: PairSet, rows: LongArray) -> int:
    sides = (data.chosen.completion_mask, data.rejected.completion_mask)
    return int(sum(side[int(row)].sum() for side in sides for row in rows))


def _by_length(rows: LongArray, lengths: LongArray, max_tokens: int, rows_per_item: int = 1) -> list[LongArray]:
    return [rows[group] for group in micro_batches(lengths[rows], max_tokens, rows_per_item)]


def _padded(data: SequenceSet, rows: LongArray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [n, L], completion mask [n, L] and lengths [n] of some rows."""
    tokens = torch.from_numpy(data.tokens.padded(rows)).to(device, torch.long)
    mask = torch.from_numpy(data.completion_mask.padded(rows, False)).to(device)
    return tokens, mask, torch.from_numpy(data.tokens.lengths[rows]).to(device)


def _padded_pairs(data: PairSet, rows: LongArray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """As `_padded` for [chosen rows; rejected rows]: 2n rows."""
    sides = [_padded(side, rows, device) for side in (data.chosen, data.rejected)]
    width = max(tokens.shape[1] for tokens, _, _ in sides)
    tokens, mask = (
        torch.cat([torch.nn.functional.pad(side[i], (0, width - side[i].shape[1])) for side in sides]) for i in (0, 1)
    )
    return tokens, mask, torch.cat([side[2] for side in sides])
