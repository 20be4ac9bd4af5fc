"""Languages told apart by their characters: how far two are from each other, and in which one a text is written (S287, S300).

A text is its character n-grams, n = 1 to 3, of words with a blank on either side. No model and no download: a few texts of each
language are enough.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from luthier.errors import DataError

LONGEST = 3
"""Characters of the longest n-gram."""


def ngrams(text: str) -> Iterator[str]:
    """The character n-grams of a text's words, in lower case."""
    for word in text.lower().split():
        padded = f" {word} "
        for n in range(1, LONGEST + 1):
            for i in range(len(padded) - n + 1):
                if (gram := padded[i : i + n]).strip():
                    yield gram


def counted(texts: Iterable[str]) -> Counter[str]:
    """How often each n-gram occurs. DataError where there are none."""
    found = Counter(gram for text in texts for gram in ngrams(text))
    if not found:
        raise DataError("These texts of a language hold no words: give texts that do.")
    return found


def distance(one: Iterable[str], other: Iterable[str]) -> float:
    """How far two languages' texts are: half the sum of |p(n-gram) - q(n-gram)|; 0: alike, 1: nothing in common."""
    p, q = counted(one), counted(other)
    a, b = sum(p.values()), sum(q.values())
    return sum(abs(p[g] / a - q[g] / b) for g in p.keys() | q.keys()) / 2


class Identifier:
    """Which of several languages a text is in: the one whose n-grams make it likeliest (naive Bayes, one added to each count).

    samples: {language: texts in it}, at least two languages.
    """

    def __init__(self, samples: Mapping[str, Sequence[str]]):
        if len(samples) < 2:
            raise DataError("To tell languages apart, texts of two at least are needed.")
        counts = {name: counted(texts) for name, texts in samples.items()}
        known = set().union(*counts.values())
        self.scores = {
            name: {g: math.log((found[g] + 1) / (sum(found.values()) + len(known) + 1)) for g in known}
            for name, found in counts.items()
        }
        self.unknown = {
            name: -math.log(sum(found.values()) + len(known) + 1) for name, found in counts.items()
        }

    def of(self, text: str) -> str | None:
        """The language of a text; None for a text without words."""
        grams = list(ngrams(text))
        if not grams:
            return None
        return max(
            self.scores, key=lambda name: sum(self.scores[name].get(g, self.unknown[name]) for g in grams)
        )

    def share(self, texts: Sequence[str], language: str) -> float:
        """The share of texts that are in a language; an empty text is in none. DataError for an unknown language."""
        if language not in self.scores:
            raise DataError(
                f"No texts of {language[:60]!r} were given to know it by. There are: {', '.join(self.scores)}."
            )
        return sum(self.of(text) == language for text in texts) / len(texts) if texts else 0.0
