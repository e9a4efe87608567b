"""The value of the exact task's best policy, and how close a policy comes to it: computed, not sampled.

Let r be the reward, beta the weight of the KL to the reference, and expectations be over completions y of a prompt x:

    J(pi)     = E_pi[r] - beta KL(pi || pi_ref)
    pi*(y|x)  = pi_ref(y|x) exp(r(x, y) / beta) / Z(x)         (Rafailov et al. 2023, eq. 4)
    J*        = beta log Z = beta log E_ref[exp(r / beta)]
    fraction  = (J(pi) - J(pi_ref)) / (J* - J(pi_ref))

each averaged over the prompts. The sampling temperature is 1; all logprobs and KLs are in nats.
Letters: P prompts, C completions of a prompt, T tokens of the longest completion, W words that do not end one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from raylign.config import ExactTask
from raylign.errors import UserError
from raylign.tasks.exact_reward import ExactReward, task_prompts, vocabulary
from raylign.types import IntArray, LongArray

Float64Array = NDArray[np.float64]

SUM_TOLERANCE = 1e-4
"""Largest allowed difference between 1 and the sum of the probabilities of all completions."""


@dataclass(frozen=True)
class Enumeration:
    """All completions that a policy of the task can sample, with their rewards.

    Words a, b and length 2: tokens [[a, a], [a, b], [b, a], [b, b]], lengths [2, 2, 2, 2]. In the variant `eos`, with
    one word a and `.` as the end: tokens [[., .], [a, .], [a, a]], lengths [1, 2, 2]; the last completion was cut.
    """

    task: ExactTask
    prompts: list[tuple[int, ...]]  # P
    tokens: IntArray  # [C, T], shorter completions before longer ones, then in order; 0 after the end
    lengths: LongArray  # [C], including the token that ends the completion
    rewards: Float64Array  # [P, C]

    @classmethod
    def of(cls, task: ExactTask) -> Enumeration:
        """Enumerate the completions of a task."""
        prompts, reward = task_prompts(task), ExactReward(task)
        words = _words(task)
        tokens, lengths, rewards = [], [], []
        for num_words in range(0 if task.variant == "eos" else task.length, task.length + 1):
            block = _sequences(words, num_words)  # [W ** num_words, num_words]
            tokens.append(np.pad(block, ((0, 0), (0, task.length - num_words))))
            lengths.append(np.full(len(block), min(num_words + 1, task.length)))
            rewards.append([reward.of_tokens(np.array(prompt[-1:]), block) for prompt in prompts])
        return cls(task, prompts, np.concatenate(tokens), np.concatenate(lengths), np.concatenate(rewards, axis=1))

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Optimum:
    """The best policy for one beta, and its value averaged over prompts."""

    j_star: float  # J of the best policy
    j_ref: float  # J of the reference, which is its mean reward
    reward: float  # E[r] of the best policy
    kl: float  # KL of the best policy to the reference, nats
    logprobs: Float64Array  # [P, C], of the best policy, nats


@dataclass(frozen=True)
class ExactValue:
    """The value of a policy for one beta, averaged over prompts."""

    reward: float  # E[r]
    kl: float  # KL to the reference, nats
    j: float  # reward - beta * kl
    fraction: float  # of the attainable gain: 0 is the reference, 1 the optimum; below 0 is worse than the reference


def log_probabilities(
    policy: PreTrainedModel | str | Path, enumeration: Enumeration, batch_rows: int = 8192
) -> Float64Array:
    """Compute the logprobs of all completions of all prompts: [P, C], nats.

    Completions that differ only in the last token share a row of a forward pass: a row is the prompt and T - 1 words,
    and gives the distribution of the token after each of its prefixes.

    Args:
        policy: a model, or its folder (which is then loaded in fp32).
        batch_rows: number of rows in one forward pass.
    Raises:
        UserError: the vocabulary is smaller than the task's, or the probabilities of a prompt's completions do not sum
            to 1: the model is not a policy of this task.
    """
    name = str(policy.name_or_path if isinstance(policy, PreTrainedModel) else policy)
    model: Any = policy
    if not isinstance(policy, PreTrainedModel):
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    num_tokens = model.config.get_text_config().vocab_size
    if num_tokens < enumeration.task.vocab_size:
        raise UserError(
            f"{name}: its vocabulary of {num_tokens} is smaller than the task's {enumeration.task.vocab_size}; "
            "it is not a policy of this exact task"
        )
    was_training = model.training
    model.eval()
    try:
        rows = [_prompt_logprobs(model, prompt, enumeration.task, batch_rows) for prompt in enumeration.prompts]
    finally:
        model.train(was_training)
    for prompt, row in zip(enumeration.prompts, rows, strict=True):
        total = float(np.exp(row).sum())
        if not abs(total - 1.0) <= SUM_TOLERANCE:  # written so that NaN fails too
            text = " ".join(vocabulary(enumeration.task)[token] for token in prompt)
            raise UserError(
                f"{name}: the probabilities of all completions of prompt {text!r} sum to {total:.6f}, not 1; "
                "it is not a policy of this exact task, or its weights are broken"
            )
    return np.stack(rows)


def optimum(ref_logprobs: Float64Array, rewards: Float64Array, beta: float) -> Optimum:
    """Compute the policy that maximises J, and its value.

    Args:
        ref_logprobs, rewards: [P, C].
        beta: weight of the KL.
    Raises:
        ValueError: beta is not above 0.
    """
    _check_beta(beta)
    tilted = ref_logprobs + rewards / beta
    log_z = np.logaddexp.reduce(tilted, axis=1)  # [P]
    logprobs = tilted - log_z[:, None]
    return Optimum(
        j_star=float(beta * log_z.mean()),
        j_ref=_expectation(ref_logprobs, rewards),
        reward=_expectation(logprobs, rewards),
        kl=_expectation(logprobs, logprobs - ref_logprobs),
        logprobs=logprobs,
    )


def evaluate(logprobs: Float64Array, ref_logprobs: Float64Array, rewards: Float64Array, beta: float) -> ExactValue:
    """Compute the value of a policy. Arrays are [P, C].

    Raises:
        ValueError: in every prompt all rewards are equal, so that no policy is better than the reference; or beta is
            not above 0.
    """
    best = optimum(ref_logprobs, rewards, beta)
    gain = best.j_star - best.j_ref
    if np.ptp(rewards, axis=1).max() == 0:
        raise ValueError("every completion has the same reward: no policy is better than the reference")
    reward = _expectation(logprobs, rewards)
    kl = _expectation(logprobs, logprobs - ref_logprobs)
    j = reward - beta * kl
    return ExactValue(reward, kl, j, fraction=(j - best.j_ref) / gain)


def frontier(ref_logprobs: Float64Array, rewards: Float64Array, betas: Iterable[float]) -> list[tuple[float, float]]:
    """Return (KL, reward) of the optimum for each beta: no policy has more reward at the same KL."""
    points = (optimum(ref_logprobs, rewards, beta) for beta in betas)
    return [(point.kl, point.reward) for point in points]


def _prompt_logprobs(model: Any, prompt: tuple[int, ...], task: ExactTask, batch_rows: int) -> Float64Array:
    """Compute the logprobs of all completions of a prompt, in the order of the enumeration: [C]."""
    words = _words(task)
    contexts = _sequences(words, task.length - 1)  # [W ** (T - 1), T - 1]
    tables = np.concatenate(
        [
            _next_logprobs(model, prompt, contexts[at : at + batch_rows], task.vocab_size)
            for at in range(0, len(contexts), batch_rows)
        ]
    )  # [W ** (T - 1), T, V]
    logprobs = np.zeros(1)  # of all sequences of t words
    ended = []
    for t in range(task.length):
        # Contexts that begin with the same t words are adjacent and have the same distribution; take the first.
        table = tables[:: len(words) ** (task.length - 1 - t), t]  # [W ** t, V]
        if task.variant == "eos":
            ended.append(logprobs + table[:, 0])
        logprobs = (logprobs[:, None] + table[:, words]).reshape(-1)
    return np.concatenate([*ended, logprobs])


@torch.inference_mode()
def _next_logprobs(model: Any, prompt: tuple[int, ...], contexts: IntArray, num_tokens: int) -> Float64Array:
    """Compute the logprobs of each token after the prompt and the first 0, 1 ... n words: [N, 1 + n, V]."""
    rows = np.concatenate([np.tile(np.array(prompt, dtype=np.int64), (len(contexts), 1)), contexts], axis=1)
    logits = model(input_ids=torch.from_numpy(rows).to(model.device), use_cache=False).logits[:, len(prompt) - 1 :]
    # Over the model's whole vocabulary, so that probability outside the task's shows as a sum below 1.
    return logits.double().log_softmax(dim=-1)[..., :num_tokens].cpu().numpy()


def _words(task: ExactTask) -> IntArray:
    """Return the tokens that do not end a completion: [W]."""
    return np.arange(1 if task.variant == "eos" else 0, task.vocab_size, dtype=np.int32)


def _sequences(words: IntArray, length: int) -> IntArray:
    """Return all sequences of `length` words, in order: [W ** length, length]."""
    places = np.indices((len(words),) * length, dtype=np.int32)  # [length, W, ..., W]
    return words[places.reshape(length, len(words) ** length).T]


def _expectation(logprobs: Float64Array, values: Float64Array) -> float:
    """Return the expectation of `values` [P, C] under a policy, averaged over prompts; terms of probability 0 are 0."""
    probabilities = np.exp(logprobs)
    with np.errstate(invalid="ignore"):
        terms = np.where(probabilities > 0, probabilities * values, 0.0)
    return float(terms.sum(axis=1).mean())


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be above 0")
