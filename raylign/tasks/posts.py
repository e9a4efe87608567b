"""Generated posts: a few sentences, each stating a fact; the first word of a sentence marks how much its fact matters.

    crucially anna sold boats in paris on monday . anyway omar drew maps .

A sentence is `[MARKER] WHO DID WHAT [in PLACE] [on DAY] .` Each of its words is in exactly one of the lists below, so
the fact can be read back without guessing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MARKERS: dict[int, str] = {
    3: "crucially importantly",
    2: "mainly notably",
    1: "also besides",
    0: "incidentally anyway",
}
WEIGHT: dict[str, int] = {word: weight for weight, words in _MARKERS.items() for word in words.split()}
"""Weight of the fact of a sentence, by the sentence's first word."""

WHO, DID, WHAT, PLACE, DAY = (
    tuple(words.split())
    for words in (
        "anna boris carla diego elena felix irene liam maria omar",
        "bought sold found lost painted hid drew stole",
        "boats lamps maps clocks chairs books kites drums coins shoes",
        "paris oslo cairo lima delhi rome",
        "monday tuesday thursday friday sunday",
    )
)
IN, ON, END = "in", "on", "."

_HAS_PLACE, _HAS_DAY = 0.7, 0.5


@dataclass(frozen=True)
class Fact:
    """A statement of who did what and, optionally, where and when."""

    who: str
    did: str
    what: str
    place: str | None = None
    day: str | None = None

    def words(self, place: bool = True, day: bool = True) -> list[str]:
        """Return the fact as a sentence without marker; `place` and `day` include these details if the fact has them.

        >>> " ".join(Fact("anna", "sold", "boats", "paris").words())
        'anna sold boats in paris .'
        """
        where = [IN, self.place] if place and self.place else []
        when = [ON, self.day] if day and self.day else []
        return [self.who, self.did, self.what, *where, *when, END]

    def supports(self, stated: Fact) -> bool:
        """Return whether this fact implies `stated`: details may be left out, but not changed."""
        core = (self.who, self.did, self.what) == (stated.who, stated.did, stated.what)
        return core and stated.place in (None, self.place) and stated.day in (None, self.day)


@dataclass(frozen=True)
class Sentence:
    """A fact and the marker before it, if there is one."""

    fact: Fact
    marker: str | None = None

    @property
    def weight(self) -> int:
        """Weight of the fact; 0 without a marker."""
        return WEIGHT.get(self.marker or "", 0)


def read_sentences(text: str) -> list[Sentence | None]:
    """Parse each sentence of a text; None for words that do not form a sentence of the grammar.

    >>> read_sentences("also omar drew maps . omar drew")
    [Sentence(fact=Fact(who='omar', did='drew', what='maps', place=None, day=None), marker='also'), None]
    """
    sentences: list[Sentence | None] = []
    words: list[str] = []
    for word in split_words(text):
        if word == END:
            sentences.append(_read(words))
            words = []
        else:
            words.append(word)
    return [*sentences, None] if words else sentences


def split_words(text: str) -> list[str]:
    """Split a text into words; a full stop is a word of its own, with or without a space before it."""
    return text.replace(END, f" {END} ").split()


def write_post(rng: np.random.Generator, num_facts: int) -> list[Sentence]:
    """Draw a post of `num_facts` sentences, at least one of the greatest weight; no WHO, DID or WHAT is repeated."""
    weights = [max(WEIGHT.values()), *rng.choice(list(_MARKERS), size=num_facts - 1)]
    people, deeds, things = (rng.permutation(len(words)) for words in (WHO, DID, WHAT))
    sentences = []
    for i, weight in enumerate(rng.permutation(weights)):
        fact = Fact(
            WHO[people[i]],
            DID[deeds[i]],
            WHAT[things[i]],
            _one(rng, PLACE) if rng.random() < _HAS_PLACE else None,
            _one(rng, DAY) if rng.random() < _HAS_DAY else None,
        )
        sentences.append(Sentence(fact, _one(rng, tuple(_MARKERS[int(weight)].split()))))
    return sentences


def post_words(post: list[Sentence]) -> list[str]:
    """Return the words of a post."""
    return [
        word for sentence in post for word in [*([sentence.marker] if sentence.marker else []), *sentence.fact.words()]
    ]


def vocabulary() -> list[str]:
    """Return every word of posts and summaries, sorted: punctuation first."""
    return sorted({*WEIGHT, *WHO, *DID, *WHAT, *PLACE, *DAY, IN, ON, END})


def _one(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]


def _read(words: list[str]) -> Sentence | None:
    marker = words.pop(0) if words and words[0] in WEIGHT else None
    if len(words) < 3 or not (words[0] in WHO and words[1] in DID and words[2] in WHAT):
        return None
    (who, did, what), rest = words[:3], words[3:]
    place = day = None
    if len(rest) >= 2 and rest[0] == IN and rest[1] in PLACE:
        place, rest = rest[1], rest[2:]
    if len(rest) >= 2 and rest[0] == ON and rest[1] in DAY:
        day, rest = rest[1], rest[2:]
    return None if rest else Sentence(Fact(who, did, what, place, day), marker)
