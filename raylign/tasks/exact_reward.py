"""Words, prompts and reward of the exact task, the parts that need no model.

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
"""Share of bigrams that have a reward in the variant `sparse`."""
TOKEN_COST = 0.2
"""Cost of every word before the end in the variant `eos`."""


def vocabulary(task: ExactTask) -> list[str]:
    """Return the word of every token: [vocab_size]."""
    words = [f"t{i}" for i in range(task.vocab_size)]
    return [EOS_WORD, *words[1:]] if task.variant == "eos" else words


def task_rng(task: ExactTask, use: Literal["prompts", "reward", "source", "training", "corpus"]) -> np.random.Generator:
    """Create the random generator of a use, independent of other uses, so that variants of one seed share streams."""
    return np.random.default_rng([task.seed, *use.encode()])


def task_prompts(task: ExactTask) -> list[tuple[int, ...]]:
    """Return the `num_prompts` different prompts, without the token that ends a completion.

    All have one token, or all have two if there are more prompts than words: if a prompt were the beginning of another,
    a policy could not know where the shorter prompt ends, and could not reach the optimum.
    """
    words = range(1 if task.variant == "eos" else 0, task.vocab_size)
    possible = list(product(words, repeat=1 if task.num_prompts <= len(words) else 2))
    picked = task_rng(task, "prompts").permutation(len(possible))[: task.num_prompts]
    return [possible[i] for i in picked]


class ExactReward:
    """The true reward of completions y_1 ... y_n of a prompt whose last token is y_0. Can be pickled.

    R is a table with an independent normal number for each bigram (one table for each seed), and T the task's length:
    - `bigram`: the sum of R[y_{i-1}, y_i] over i = 1 ... n; R has a standard deviation of 1 / sqrt(T), so that rewards
      of random completions have a standard deviation of about 1;
    - `sparse`: the same, with all but 15 % of R set to 0 and the rest scaled up;
    - `terminal`: R[y_{n-1}, y_n], the last bigram only, with a standard deviation of 1;
    - `eos`: as `bigram` over the n words before the end, minus 0.2 n. A completion that was cut at the longest length
      has the reward of its words; a completion that ends at once has 0.
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
        """Score texts, with the signature of a reward function; the columns are not used.

        Raises:
            RaylignError: a text has a word that is not in the task's vocabulary.
        """
        return [
            float(self.of_tokens(self._encode(prompt)[-1:], np.array([self._encode(completion)], dtype=np.int64))[0])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    def of_tokens(self, last: NDArray[np.integer], words: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the rewards of N completions with the same number n of words: [N].

        Args:
            last: [1], last token of the prompt.
            words: [N, n], without the token that ends a completion.
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
