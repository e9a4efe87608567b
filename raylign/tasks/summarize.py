"""Summaries of generated posts, in the place of Reddit TL;DR (section 6 of Rafailov et al. 2023): their quality is known.

There a stronger model judges summaries; here the score is counted, and the held-out prompts bring reference summaries.
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
"""Words, full stops among them, that cost as much as a perfect summary is worth; no length costs more."""

CUE = ("tl;dr", ":")
_INITIAL_STD, _ROPE_THETA = 0.1, 100.0
"""So narrow a model with weights as small as is usual, 0.02, needs several times the steps to learn to copy, and
in a context so short the slow rotations say nothing."""
_SENTENCE_WORDS = 9  # the longest
_SPARE_POSITIONS = 22  # for the cue, an end and a user's longer prompt


def quality(summary: str, post: str) -> float:
    """True score of a summary, in log odds of being preferred: `5 (coverage x faithfulness - words / 50)`, in [-5, 5).

    coverage: weight of the post's facts that the summary states, as a share of the weight of all of them
        (`crucially` and `importantly` 3, `mainly` and `notably` 2, `also` and `besides` 1, `incidentally` and `anyway` 0).
        A fact is stated by a whole sentence with its who, did and what; where and when may be left out.
    faithfulness: facts of the post that the summary states, as a share of those and of its other sentences: false
        ones (a detail changed, two facts mixed) and fragments, such as words without a full stop at the end.
    words: all of them and the full stops, 50 at most.

    A fact counts once however often it is stated, a false sentence every time. A summary that states nothing, the empty
    one too, covers nothing.

    Args:
        summary: words separated by spaces, and full stops.
        post: the prompt; what is no sentence of a post, such as `tl;dr :`, is passed over.

    Both facts that matter of three, 3 of 3 + 1 + 0 and then all of it, in 4 and 8 words:

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
    """`quality` of every completion given its prompt, in the shape of a reward function; columns are not used."""
    return [quality(completion, prompt) for prompt, completion in zip(prompts, completions, strict=True)]


def prepare(task: SummarizeTask, directory: Path) -> TaskFiles:
    """See `raylign.tasks.prepare`. Rows are {"prompt", "completion"} in the corpus, {"prompt"} in the training prompts,
    {"prompt", "reference"} in the evaluation prompts, which are distinct and stand nowhere else.

    A completion begins with a space, so that prompt + completion is one text; a reference does not.
    """
    return write_once(directory, lambda files: _write(task, files))


def write_summary(rng: np.random.Generator, post: list[Sentence], care: float) -> list[str]:
    """A summary as people write them. `care` from 0 (facts as they come, details, mistakes) to 1 (what matters, rightly).

    A fact is stated with a probability that goes from 0.5 without care to 0.05, 0.35, 0.85, 0.95 by weight with all of it.
    """
    careful = (0.05, 0.35, 0.85, 0.95)
    chosen = [s.fact for s in post if rng.random() < care * careful[s.weight] + (1 - care) * 0.5]
    if not chosen:
        chosen = [max(post, key=lambda s: s.weight).fact]
    words = []
    for fact in chosen:
        told = _mistaken(rng, fact) if rng.random() < 0.25 * (1 - care) else fact
        detailed = 0.6 - 0.2 * care
        words += told.words(place=rng.random() < detailed, day=rng.random() < detailed)
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
    """Context of the model: the longest post, a summary that says all of it, and some room."""
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
    """One token a word of the posts and the cue."""
    return word_tokenizer([*vocabulary(), *CUE], num_positions(task))
