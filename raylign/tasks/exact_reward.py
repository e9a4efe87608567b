"""The exact task's words, prompts and reward: what is known of it without a model.

Token i of the vocabulary is the word `t<i>`; in the variant `eos` token 0 is the word `<eos>`, which ends a completion.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raylign.config import ExactTask
from raylign.errors import RaylignError

EOS_WORD = "<eos>"
SPARSE_SHARE = 0.15
"""Share of the bigrams that have a reward in the variant `sparse`."""
TOKEN_COST = 0.2
"""Of every word before the end in the variant `eos`."""


def vocabulary(task: ExactTask) -> list[str]:
    """The word of every token: [vocab_size]."""
    words = [f"t{i}" for i in range(task.vocab_size)]
    return [EOS_WORD, *words[1:]] if task.variant == "eos" else words


def task_rng(task: ExactTask, use: Literal["prompts", "reward", "source", "training", "corpus"]) -> np.random.Generator:
    """One independent stream for each use, so that variants of one seed share what they have in common."""
    return np.random.default_rng([task.seed, *use.encode()])


def task_prompts(task: ExactTask) -> list[tuple[int, ...]]:
    """The `num_prompts` different prompts; never with the token that ends a completion.

    All have one token, or all two if there are more prompts than words: were one prompt the beginning of another, a policy
    could not tell where the shorter one ends, and the best policy would be out of its reach.
    """
    words = range(1 if task.variant == "eos" else 0, task.vocab_size)
    possible = list(product(words, repeat=1 if task.num_prompts <= len(words) else 2))
    picked = task_rng(task, "prompts").permutation(len(possible))[: task.num_prompts]
    return [possible[i] for i in picked]


class ExactReward:
    """The true reward of completions y_1 ... y_n of a prompt whose last token is y_0. Can be pickled.

    R is a table of one number per bigram, independent and normal (a seed has one table), and T the task's length:
    - `bigram`: the sum of R[y_{i-1}, y_i] over i = 1 ... n, with a standard deviation of R of 1 / sqrt(T), so that the
      rewards of random completions have one near 1;
    - `sparse`: the same, with all but 15 % of R set to 0 and the rest larger in turn;
    - `terminal`: R[y_{n-1}, y_n], the last bigram alone, with a standard deviation of 1;
    - `eos`: as bigram over the n words before the end, minus 0.2 n. A completion that was cut at its longest has the
      reward of its words; one that ends at once has 0.
    """

    def __init__(self, task: ExactTask) -> None:
        self.task = task
        rng = task_rng(task, "reward")
        table = rng.normal(size=(task.vocab_size, task.vocab_size))
        if task.variant == "sparse":
            kept = max(1, round(SPARSE_SHARE * table.size))
            table.flat[rng.permutation(table.size)[kept:]] = 0.0
            table /= np.sqrt(SPARSE_SHARE)
        if task.variant != "terminal":
            table /= np.sqrt(task.length)
        self.table = table  # [previous token, token]
        self._ids = {word: i for i, word in enumerate(vocabulary(task)) if word != EOS_WORD}

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """`of_tokens` of texts, in the shape of a reward function; the columns are not used."""
        return [
            float(self.of_tokens(self._encode(prompt)[-1:], np.array([self._encode(completion)], dtype=np.int64))[0])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def of_tokens(self, last: NDArray[np.integer], words: NDArray[np.integer]) -> NDArray[np.float64]:
        """Rewards of N completions of the same number n of words.

        Args:
            last: [1], last token of the prompt.
            words: [N, n], without the token that ends a completion.
        Returns:
            [N]
        """
        before = np.concatenate([np.broadcast_to(last, (len(words), 1)), words], axis=1)
        bigrams = self.table[before[:, :-1], words]  # [N, n]
        if self.task.variant == "terminal":
            return bigrams[:, -1]
        if self.task.variant == "eos":
            bigrams = bigrams - TOKEN_COST
        return bigrams.sum(axis=1)

    def _encode(self, text: str) -> NDArray[np.int64]:
        words = text.split()
        unknown = [word for word in words if word not in self._ids]
        if unknown:
            raise RaylignError(f"exact task: {unknown[0]!r} is not one of its {len(self._ids)} words")
        return np.array([self._ids[word] for word in words], dtype=np.int64)
