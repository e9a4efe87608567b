"""Short film reviews: the words, their valences, and a small grammar that generates reviews.

The grammar is a table. In a rule, capitals name other rules, `|` separates alternatives, and a rule name that ends
in `*` takes the sign of its clause (`ADJ*` is `ADJ+` in praise), a name that ends in `~` the opposite sign (for "not
dull"). `@FOLK` is a FOLK that the review has already mentioned, `FOLK` a new FOLK. Everything else is a word of the
vocabulary; punctuation marks are words of their own.
"""

from __future__ import annotations

import numpy as np

_VALENCES: dict[int, str] = {
    2: """brilliant superb magnificent wonderful unforgettable dazzling gorgeous loved adored delights soars delighted
        masterpiece""",
    1: """good charming clever warm lively tender elegant witty honest graceful fresh touching pleasant funny thoughtful
        liked enjoyed admired works shines sparkles charm wit warmth grace happy moved gladly joy""",
    -1: """dull clumsy bland weak lazy stale noisy hollow tedious shallow confusing messy silly cold lifeless
        disliked endured regretted fails drags stumbles nonsense boredom noise laziness bored annoyed reluctantly mess""",
    -2: """terrible dreadful awful unbearable hideous horrible hated loathed collapses irritates furious disaster""",
}
VALENCE: dict[str, float] = {word: float(v) for v, words in _VALENCES.items() for word in words.split()}
"""Valence that a sentiment word adds to a review, before negation and intensifiers."""

INTENSIFIERS: dict[str, float] = {
    "very": 1.5,
    "truly": 1.5,
    "really": 1.5,
    "utterly": 2.0,
    "absolutely": 2.0,
    "rather": 0.75,
    "slightly": 0.5,
    "somewhat": 0.5,
}
"""Factor of the next sentiment word."""

NEGATIONS = frozenset({"not", "never", "hardly", "without", "no"})
CLAUSE_BREAKS = frozenset({".", ",", "and", "but", "though", "yet"})
"""Words that end the reach of a negation or an intensifier."""

_RULES: dict[str, str] = {
    "ADJ+": """brilliant | superb | magnificent | wonderful | unforgettable | dazzling | gorgeous | good | charming
        | clever | warm | lively | tender | elegant | witty | honest | graceful | fresh | touching | pleasant | funny
        | thoughtful""",
    "ADJ0": "long | quiet | strange | simple | familiar | slow | dark | unusual | loud | short | serious | odd",
    "ADJ-": """terrible | dreadful | awful | unbearable | hideous | horrible | dull | clumsy | bland | weak | lazy | stale
        | noisy | hollow | tedious | shallow | confusing | messy | silly | cold | lifeless""",
    "FELT+": "loved | adored | liked | enjoyed | admired",
    "FELT0": "noticed | remembered | followed | expected | understood",
    "FELT-": "hated | loathed | disliked | endured | regretted",
    "ACTS+": "delights | soars | works | shines | sparkles",
    "ACTS0": "unfolds | changes | wanders | continues",
    "ACTS-": "collapses | irritates | fails | drags | stumbles",
    "THING+": "charm | wit | warmth | grace | joy",
    "THING0": "rain | talk | smoke | snow | silence",
    "THING-": "nonsense | boredom | noise | laziness",
    "LEFT+": "happy | delighted | moved",
    "LEFT0": "early | hungry | late",
    "LEFT-": "bored | annoyed | furious",
    "VERDICT+": "masterpiece | joy | wonderful surprise | charming little film",
    "VERDICT0": "matter of taste | film for the weekend | film for children | long evening",
    "VERDICT-": "mess | disaster | dull affair | tedious exercise",
    "GENRE": """western | comedy | thriller | romance | musical | documentary | drama | mystery | cartoon | sequel
        | remake | fable""",
    "ASPECT": """plot | story | acting | music | ending | dialogue | script | camera work | pacing | direction | cast
        | humour | opening | villain | hero | romance | last scene | second half""",
    "PLACE": """harbour | village | desert | castle | city | circus | train | school | hotel | forest | lighthouse
        | spaceship""",
    "FOLK": """sailor | widow | detective | painter | soldier | teacher | singer | farmer | thief | doctor | ghost
        | robot""",
    "FRIEND": "sister | brother | mother | father | neighbour",
    "WHEN": "last night | on sunday | in an empty cinema | on a plane | at a festival | with my FRIEND | twice",
    "DEGREE": "very | truly | really | utterly | absolutely | rather | slightly | somewhat",
    # Statements in the tone of the clause.
    "STATE*": """ADJ* | ADJ* | ADJ* | ADJ* and ADJ* | DEGREE ADJ* | DEGREE ADJ* | not ADJ~ | hardly ADJ~
        | not DEGREE ADJ~""",
    "CLAUSE*": """the ASPECT is STATE* | the ASPECT is STATE* | the ASPECT is STATE* | the ASPECT ACTS*
        | the ASPECT never ACTS~ | i FELT* the ASPECT | i really FELT* the ASPECT | i never FELT~ the ASPECT
        | every scene ACTS* | there is THING* in the ASPECT | there is no THING~ in the ASPECT
        | the @FOLK is STATE* | the @FOLK is played without THING~ | the @PLACE looks ADJ*""",
    "END*": """i left the cinema LEFT* . | my FRIEND left LEFT* . | a VERDICT* . | what a VERDICT* . | it is a VERDICT* .
        | CLAUSE* . | i would call this @GENRE ADJ* . | AGAIN* .""",
    "AGAIN+": "i would gladly see it again",
    "AGAIN0": "i may see it again",
    "AGAIN-": "i finished it reluctantly",
    # Beginnings of a review: neutral, and varied enough that a prompt says what the film is.
    "BEGIN": """this ADJ0 GENRE follows a FOLK through the PLACE | the GENRE is about a FOLK in a PLACE
        | i watched this GENRE WHEN | i saw the GENRE WHEN | this is a GENRE about a FOLK and a ADJ0 PLACE
        | in this GENRE a FOLK meets a FOLK | a FOLK and a FOLK share a PLACE | the film takes us to a ADJ0 PLACE
        | my FRIEND chose this ADJ0 GENRE | we follow a FOLK from PLACE to PLACE | the director of this GENRE filmed a PLACE
        | half of the GENRE happens in a PLACE | nobody told me that this GENRE has a FOLK
        | after the ADJ0 opening a FOLK finds the PLACE | a ADJ0 GENRE with a FOLK""",
    "TURN": "from the first scene | by the end | in the @PLACE | for a @GENRE | most of the time",
}


_OPPOSITE = {"+": "-", "0": "0", "-": "+"}
_ALTERNATIVES: dict[str, list[list[str]]] = {
    name: [alternative.split() for alternative in rule.split("|")] for name, rule in _RULES.items()
}
_SHORTEST, _LONGEST = 14, 30


def vocabulary() -> list[str]:
    """Return every word that a review can have, sorted: punctuation first."""
    words = {"but", "and", "though", "yet", ",", ".", "an"}
    for alternatives in _ALTERNATIVES.values():
        words.update(
            word for alternative in alternatives for word in alternative if word[0] != "@" and not word[0].isupper()
        )
    return sorted(words | VALENCE.keys() | INTENSIFIERS.keys() | NEGATIONS)


def write_review(rng: np.random.Generator) -> list[str]:
    """Draw a review, a list of 14 to 30 words.

    A review has its own tone, drawn uniformly between scathing and glowing, and most of its clauses follow it; the mean
    over many reviews is neutral.
    """
    while True:
        words = _Writer(rng).review()
        if _SHORTEST <= len(words) <= _LONGEST:
            return words


class _Writer:
    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._tone = rng.uniform(-1.0, 1.0)
        self._mentioned: dict[str, list[list[str]]] = {"FOLK": [], "PLACE": [], "GENRE": []}

    def review(self) -> list[str]:
        rng = self._rng
        first, second, last = (self._sign() for _ in range(3))
        words = self._expand("BEGIN", "0")
        if rng.random() < 0.3:
            words += [",", "and"]
        elif rng.random() < 0.3:
            words += [".", *self._expand("TURN", "0"), ","]
        else:
            words.append(".")
        words += self._expand("CLAUSE*", first)
        if rng.random() < 0.75:
            joins = ("but", "though", "yet") if {first, second} == {"+", "-"} else ("and",)
            words += [",", joins[rng.integers(len(joins))], *self._expand("CLAUSE*", second)]
        words.append(".")
        if rng.random() < 0.7:
            words += self._expand("END*", last)
        following = [*words[1:], ""]
        return [
            "an" if w == "a" and next_[:1] in set("aeiou") else w for w, next_ in zip(words, following, strict=True)
        ]

    def _sign(self) -> str:
        if self._rng.random() < 0.15:
            return "0"
        return "+" if self._rng.random() < 1.0 / (1.0 + np.exp(-3.0 * self._tone)) else "-"

    def _expand(self, rule: str, sign: str) -> list[str]:
        alternatives = _ALTERNATIVES[rule]
        words: list[str] = []
        for token in alternatives[self._rng.integers(len(alternatives))]:
            if token[0] == "@":
                words += self._recall(token[1:])
            elif not token[0].isupper():
                words.append(token)
            elif token in self._mentioned:
                words += self._mention(token)
            elif token in _ALTERNATIVES:
                words += self._expand(token, sign)
            else:
                inner = _OPPOSITE[sign] if token[-1] == "~" else sign
                words += self._expand(token[:-1] + inner, inner)
        return words

    def _mention(self, kind: str) -> list[str]:
        fresh = [a for a in _ALTERNATIVES[kind] if a not in self._mentioned[kind]]
        chosen = fresh[self._rng.integers(len(fresh))]
        self._mentioned[kind].append(chosen)
        return chosen

    def _recall(self, kind: str) -> list[str]:
        known = self._mentioned[kind]
        return known[self._rng.integers(len(known))] if known else self._mention(kind)
