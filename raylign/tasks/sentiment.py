"""Controlled sentiment, after section 6.1 of Rafailov et al. 2023: reviews whose true reward is known.

The paper's ground truth is a classifier of IMDb reviews; here it is a sum over words that anyone can check by hand.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from raylign.config import SentimentTask
from raylign.errors import ConfigError
from raylign.tasks.files import TaskFiles, write_once, write_rows
from raylign.tasks.reviews import CLAUSE_BREAKS, INTENSIFIERS, NEGATIONS, VALENCE, vocabulary, write_review
from raylign.tasks.word_model import HEAD_DIM, word_tokenizer, write_word_model

LARGEST_SCORE = 3.0
SCALE = 4.0
"""Valence at which the score begins to saturate."""
NEGATED = -0.75
"""Factor of a negated word: "not good" is bad, but less bad than "good" is good."""

_MAX_POSITIONS = 96  # 6 words of prompt and 64 of completion fit, with room for a user's longer prompt
_PROMPT_WORDS = (3, 6)
_MOST_REPEATS = 50  # in a row; by then over 9 in 10 reviews begin with a held-out prompt


def sentiment(text: str, prompt: str = "") -> float:
    """Return the true reward of a completion, in log odds of being liked: `3 tanh(valence / 4)`, in (-3, 3).

    The valence is a sum over sentiment words; within a clause, an intensifier multiplies the next sentiment word by its
    factor, and a negation by -0.75. Each word counts only the first time, so that repeated praise adds nothing. A text
    without sentiment words, such as an empty text, is neutral: 0.

    Args:
        text: the completion, words and punctuation separated by spaces.
        prompt: text before the completion. Its words do not count, but "... is not" at its end negates the first word
            of the completion.

    >>> round(sentiment("a superb film , not dull ."), 2)
    1.79
    """
    context = prompt.split()
    total, factor = 0.0, 1.0
    seen: set[str] = set()
    for position, word in enumerate([*context, *text.split()]):
        if word in CLAUSE_BREAKS:
            factor = 1.0
        elif word in NEGATIONS:
            factor *= NEGATED
        elif word in INTENSIFIERS:
            factor *= INTENSIFIERS[word]
        elif word in VALENCE:
            if position >= len(context) and word not in seen:
                total += factor * VALENCE[word]
            seen.add(word)
            factor = 1.0
    return LARGEST_SCORE * math.tanh(total / SCALE)


def score(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    """Score every completion by `sentiment`, with the signature of a reward function; columns are not used."""
    return [sentiment(completion, prompt) for prompt, completion in zip(prompts, completions, strict=True)]


def prepare(task: SentimentTask, directory: Path) -> TaskFiles:
    """Write the data and model of the task into `directory`, as `raylign.tasks.prepare` does.

    Rows are {"prompt", "completion"} in the corpus, {"prompt"} elsewhere. A completion begins with a space, so that
    prompt + completion is the review. Evaluation prompts are distinct and never begin a review of the corpus or a
    training prompt.
    """
    return write_once(directory, lambda files: _write(task, files))


def _write(task: SentimentTask, files: TaskFiles) -> None:
    _write_data(task, files)
    _write_model(task, files.resolve("model"))


def _write_data(task: SentimentTask, files: TaskFiles) -> None:
    rng = np.random.default_rng(task.seed)
    held_out: dict[str, None] = {}  # in the order they were written
    repeats = 0
    while len(held_out) < task.num_eval_prompts:
        prompt = _split_review(rng)[0]
        repeats = repeats + 1 if prompt in held_out else 0
        if repeats == _MOST_REPEATS:
            problem = f"no prompts are left for training after {len(held_out)} held-out prompts; lower it"
            raise ConfigError([f"task.num_eval_prompts: {problem}"])
        held_out[prompt] = None

    def training_review() -> tuple[str, str]:
        while True:
            prompt, completion = _split_review(rng)
            if prompt not in held_out:
                return prompt, completion

    corpus = (training_review() for _ in range(task.num_reviews))
    write_rows(files.resolve("corpus"), ({"prompt": p, "completion": c} for p, c in corpus))
    write_rows(files.resolve("prompts"), ({"prompt": training_review()[0]} for _ in range(task.num_prompts)))
    write_rows(files.resolve("eval_prompts"), ({"prompt": prompt} for prompt in held_out))


def _split_review(rng: np.random.Generator) -> tuple[str, str]:
    words = write_review(rng)
    cut = int(rng.integers(_PROMPT_WORDS[0], _PROMPT_WORDS[1] + 1))
    return " ".join(words[:cut]), " " + " ".join(words[cut:])


def _write_model(task: SentimentTask, path: Path) -> None:
    write_word_model(
        path,
        make_tokenizer(),
        hidden_size=task.hidden_size,
        num_layers=task.num_layers,
        num_heads=task.hidden_size // HEAD_DIM,
        seed=task.seed,
    )


def make_tokenizer():
    """Create a tokenizer with one token for each word of the reviews."""
    return word_tokenizer(vocabulary(), _MAX_POSITIONS)
