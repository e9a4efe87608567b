"""Summaries of generated posts whose quality is known, in place of Reddit TL;DR (section 6 of Rafailov et al. 2023).

In the paper a stronger model compares summaries; here the score is counted, and held-out prompts have reference
summaries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from raylign.config import SummarizeTask
from raylign.tasks.files import TaskFiles, write_once, write_rows
from raylign.tasks.posts import (
    DAY,
    DID,
    PLACE,
    WHAT,
    Fact,
    Sentence,
    post_words,
    read_sentences,
    split_words,
    vocabulary,
    write_post,
)
from raylign.tasks.word_model import HEAD_DIM, word_tokenizer, write_word_model

LARGEST_SCORE = 5.0
DEAREST_LENGTH = 50
"""Number of words, including full stops, that costs as much as a perfect summary is worth; longer costs no more."""

CUE = ("tl;dr", ":")
_INITIAL_STD, _ROPE_THETA = 0.1, 100.0
"""Larger weights and faster rotations than usual: with 0.02, so narrow a model needs several times the steps to learn
to copy, and in so short a context slow rotations carry no information."""
_SENTENCE_WORDS = 9  # of the longest sentence
_SPARE_POSITIONS = 22  # for the cue, an end and a user's longer prompt


def quality(summary: str, post: str) -> float:
    """Return the true score of a summary, in log odds of being preferred, in [-5, 5).

        5 (coverage x faithfulness - words / 50)

    coverage: weight of the post's facts that the summary states, as a share of the weight of all its facts
        (`crucially` and `importantly` 3, `mainly` and `notably` 2, `also` and `besides` 1, `incidentally` and `anyway` 0).
        A fact is stated by a full sentence with its who, did and what; where and when may be left out.
    faithfulness: number of the post's facts that the summary states, as a share of these and its other sentences: false
        sentences (a changed detail, two mixed facts) and fragments, such as words without a full stop at the end.
    words: number of words and full stops, at most 50.

    A fact counts once however often it is stated, a false sentence every time. A summary that states no fact, such as
    an empty summary, has no coverage.

    Args:
        summary: words separated by spaces, and full stops.
        post: the prompt; words that are not a sentence of a post, such as `tl;dr :`, are ignored.

    Example: a post with facts of weight 3, 1 and 0; summaries of 4 and 8 words:

    >>> post = "crucially anna sold boats in rome . anyway omar drew maps . also liam hid coins . tl;dr :"
    >>> round(quality("anna sold boats .", post), 2)  # 5 (3 / 4 - 4 / 50)
    3.35
    >>> round(quality("anna sold boats . liam hid coins .", post), 2)  # 5 (1 - 8 / 50)
    4.2
    >>> round(quality("anna sold boats . liam hid maps .", post), 3)  # 5 (3 / 4 x 1 / 2 - 8 / 50)
    1.075
    """
    facts = [sentence for sentence in read_sentences(post) if sentence]
    stated: set[int] = set()
    num_wrong = 0
    for sentence in read_sentences(summary):
        source = next((i for i, said in enumerate(facts) if sentence and said.fact.supports(sentence.fact)), None)
        if source is None:
            num_wrong += 1
        else:
            stated.add(source)
    worth = 0.0
    total = sum(sentence.weight for sentence in facts)
    if stated and total:
        coverage = sum(facts[i].weight for i in stated) / total
        worth = coverage * len(stated) / (len(stated) + num_wrong)
    return LARGEST_SCORE * (worth - min(len(split_words(summary)), DEAREST_LENGTH) / DEAREST_LENGTH)


def score(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
    """Score every completion by `quality`, with the signature of a reward function; columns are not used."""
    return [quality(completion, prompt) for prompt, completion in zip(prompts, completions, strict=True)]


def prepare(task: SummarizeTask, directory: Path) -> TaskFiles:
    """Write the data and model of the task into `directory`, as `raylign.tasks.prepare` does.

    Rows are {"prompt", "completion"} in the corpus, {"prompt"} in the training prompts, {"prompt", "reference"} in the
    evaluation prompts, which are distinct and appear nowhere else. A completion begins with a space, so that prompt +
    completion is one text; a reference does not.
    """
    return write_once(directory, lambda files: _write(task, files))


def write_summary(rng: np.random.Generator, post: list[Sentence], care: float) -> list[str]:
    """Draw a summary as people write them, by `care`: from 0 (any facts, details, mistakes) to 1 (the important facts).

    The probability that a fact is stated goes from 0.5 at care 0 to 0.05, 0.35, 0.85, 0.95, by its weight, at care 1.
    """
    careful = (0.05, 0.35, 0.85, 0.95)
    chosen = [s.fact for s in post if rng.random() < care * careful[s.weight] + (1 - care) * 0.5]
    if not chosen:
        chosen = [max(post, key=lambda s: s.weight).fact]
    words = []
    for fact in chosen:
        stated = _mistaken(rng, fact) if rng.random() < 0.25 * (1 - care) else fact
        detailed = 0.6 - 0.2 * care
        words += stated.words(place=rng.random() < detailed, day=rng.random() < detailed)
    return words


def _mistaken(rng: np.random.Generator, fact: Fact) -> Fact:
    changed = {"did": DID, "what": WHAT, "place": PLACE, "day": DAY}
    name = list(changed)[rng.integers(len(changed))]
    return Fact(**{**vars(fact), name: changed[name][rng.integers(len(changed[name]))]})


def _write(task: SummarizeTask, files: TaskFiles) -> None:
    _write_model(task, files.resolve("model"))
    _write_data(task, files)


def _write_data(task: SummarizeTask, files: TaskFiles) -> None:
    rng = np.random.default_rng(task.seed)
    held_out: dict[str, str] = {}  # reference by prompt, in the order they were written
    while len(held_out) < task.num_eval_prompts:
        post = write_post(rng, task.num_facts)
        held_out.setdefault(_prompt(post), " ".join(write_summary(rng, post, care=1.0)))

    def training_post() -> list[Sentence]:
        while True:
            post = write_post(rng, task.num_facts)
            if _prompt(post) not in held_out:
                return post

    def example() -> dict[str, str]:
        post = training_post()
        return {"prompt": _prompt(post), "completion": " " + " ".join(write_summary(rng, post, care=rng.random()))}

    write_rows(files.resolve("corpus"), (example() for _ in range(task.num_posts)))
    write_rows(files.resolve("prompts"), ({"prompt": _prompt(training_post())} for _ in range(task.num_prompts)))
    write_rows(files.resolve("eval_prompts"), ({"prompt": p, "reference": r} for p, r in held_out.items()))


def _prompt(post: list[Sentence]) -> str:
    return " ".join([*post_words(post), *CUE])


def num_positions(task: SummarizeTask) -> int:
    """Return the context length of the model: the longest post, a summary that states all of it, and some room."""
    return 2 * _SENTENCE_WORDS * task.num_facts + _SPARE_POSITIONS


def _write_model(task: SummarizeTask, path: Path) -> None:
    write_word_model(
        path,
        make_tokenizer(task),
        hidden_size=task.hidden_size,
        num_layers=task.num_layers,
        num_heads=2 * task.hidden_size // HEAD_DIM,
        seed=task.seed,
        initializer_range=_INITIAL_STD,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
    )


def make_tokenizer(task: SummarizeTask):
    """Create a tokenizer with one token for each word of the posts and the cue."""
    return word_tokenizer([*vocabulary(), *CUE], num_positions(task))
