"""PPO's two learners: the policy and the critic."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from raylign.algorithms.logprobs import token_logprobs
from raylign.algorithms.loss import LossSum
from raylign.algorithms.policy_loss import ppo_policy_loss
from raylign.algorithms.value_loss import ppo_value_loss
from raylign.config import ModelConfig, PPOConfig
from raylign.data.batching import micro_batches
from raylign.learners.learner import Learner, LearnerSpec
from raylign.learners.policy import PolicyLearner
from raylign.learners.world import World
from raylign.models.forward import completion_logits, completion_values
from raylign.models.infer import batch_values
from raylign.models.load import load_critic, load_tokenizer
from raylign.types import Experience, FloatArray, LongArray, RolloutBatch

RowLoss = Callable[[dict[str, Tensor]], LossSum]


class PPOPolicyLearner(PolicyLearner):
    """The policy under the clipped objective of Schulman et al. 2017, eq. 7."""

    def __init__(
        self,
        model: ModelConfig,
        spec: LearnerSpec,
        algorithm: PPOConfig,
        temperature: float,
        world: World | None = None,
    ) -> None:
        super().__init__(model, spec, world)
        self.algorithm = algorithm
        self.temperature = temperature

    def logprobs(self, batch: RolloutBatch) -> FloatArray:
        """Logprobs of the sampled tokens under the present weights: [N, L], 0 outside the mask."""
        with self.timed("time/logprobs"):
            return self.batch_logprobs(batch.tokens, batch.lengths, batch.completion_mask, self.temperature)

    def update(self, experience: Experience) -> dict[str, float]:
        """`epochs` passes over the step's samples in `minibatches` optimizer steps each. Returns mean metrics."""
        with self.timed("time/update_policy"):
            return _passes(self, self.algorithm, experience, self._loss, "policy")

    def _loss(self, rows: dict[str, Tensor]) -> LossSum:
        mask = rows["completion_mask"]
        logits = completion_logits(self.model, rows["tokens"], mask)
        scored = token_logprobs(logits, rows["tokens"][mask], temperature=self.temperature, with_entropy=True)
        return ppo_policy_loss(
            logprobs=scored.logprobs,
            old_logprobs=rows["old_logprobs"][mask],
            advantages=rows["advantages"][mask],
            clip_range=self.algorithm.clip_range,
            entropy=scored.entropy,
        )


class CriticLearner(Learner):
    """The critic: value of the state before each completion token."""

    role = "critic"

    def __init__(self, model: ModelConfig, spec: LearnerSpec, algorithm: PPOConfig, world: World | None = None) -> None:
        super().__init__(load_critic(model), load_tokenizer(model), spec, world)
        self.algorithm = algorithm

    def values(self, batch: RolloutBatch) -> FloatArray:
        """Values under the present weights: [N, L], 0 outside the mask."""
        with self.timed("time/values"):
            return batch_values(
                self.model,
                batch.tokens,
                batch.lengths,
                batch.completion_mask,
                max_tokens=self.spec.micro_batch_tokens,
                compute_dtype=self.compute_dtype,
            )

    def update(self, experience: Experience) -> dict[str, float]:
        """As the policy's update, with the clipped value loss."""
        with self.timed("time/update_critic"):
            return _passes(self, self.algorithm, experience, self._loss, "critic")

    def _loss(self, rows: dict[str, Tensor]) -> LossSum:
        mask = rows["completion_mask"]
        return ppo_value_loss(
            values=completion_values(self.model, rows["tokens"], mask),
            old_values=rows["values"][mask],
            returns=rows["returns"][mask],
            clip_range=self.algorithm.critic.value_clip_range,
        )


def _passes(
    learner: Learner, algorithm: PPOConfig, experience: Experience, loss: RowLoss, name: str
) -> dict[str, float]:
    steps = []
    for rows in _minibatches(learner.shuffle, len(experience), algorithm.epochs, algorithm.minibatches):
        num_tokens = int(experience.completion_mask[rows].sum())
        if num_tokens == 0:  # every score of the minibatch was invalid
            continue
        groups = [rows[g] for g in micro_batches(experience.lengths[rows], learner.spec.micro_batch_tokens)]
        steps.append(
            learner.optimizer_step(
                groups, num_tokens, lambda group: loss(_to_device(experience, group, learner.device))
            )
        )
    if not steps:
        return {}
    means = {key: float(np.mean([step[key] for step in steps])) for key in steps[0]}
    means["optimizer/skipped"] = steps[-1]["optimizer/skipped"]  # a running count, not a mean
    ours = {"loss", *(key for key in means if key.startswith("optimizer/"))}
    return {f"{name}/{key}" if key in ours else key: value for key, value in means.items()}


def _minibatches(shuffle: torch.Generator, num_rows: int, epochs: int, minibatches: int) -> Iterator[LongArray]:
    for _ in range(epochs):
        yield from np.array_split(torch.randperm(num_rows, generator=shuffle).numpy(), minibatches)


def _to_device(experience: Experience, rows: LongArray, device: torch.device) -> dict[str, Tensor]:
    width = int(experience.lengths[rows].max())
    names = ("tokens", "completion_mask", "old_logprobs", "values", "advantages", "returns")
    tensors = {name: torch.from_numpy(getattr(experience, name)[rows, :width]).to(device) for name in names}
    return tensors | {"tokens": tensors["tokens"].long()}
