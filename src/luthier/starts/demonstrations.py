"""A start for contexts: training rows with their answers, as a model that learns in context reads them."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import NonNegativeInt, PositiveInt

from luthier.host.part import Layout, Start, register
from luthier.starts.vocabulary import Vocabulary
from luthier.starts.words import rows_of

INPUT, FORMAT = 0, -1
"""Kinds of a context's tokens: of an input; of the format (begin, separator). A positive number is an answer's, counted back
from the query: 1 is the last demonstration's."""


def laid_out(ids: list[int], kinds: list[int]) -> Layout:
    """A context's layout: its tokens, their kinds, and which of them move."""
    return {"ids": ids, "kinds": kinds, "moved": [i for i, kind in enumerate(kinds) if kind <= 0]}


@register("demonstrations")
class Demonstrations(Start):
    """The embeddings of `shots` training rows; they decide the layout (`laid_out`).

    Outside a fit, where no rows are known: `shots` rows of the vocabulary.
    """

    shots: PositiveInt = 6  # training rows that become the context
    draw: NonNegativeInt = 0  # seed that draws them, classes in turn

    uses = ("demonstrations", "vocabulary")

    def layouts(self, part, sites, statistics):
        known = {s.name: statistics.get(s.name, {}) for s in sites}
        if any("demonstrations" not in found for found in known.values()):
            return None
        return {name: self.context(found["demonstrations"]) for name, found in known.items()}

    def context(self, drawn: Callable[[int, int], list[tuple[list[int], list[int]]]]) -> Layout:
        """The layout of what `drawn(shots, seed)` gives: rows as tokens and their kinds."""
        ids: list[int] = []
        kinds: list[int] = []
        rows = drawn(self.shots, self.draw)
        for back, (tokens, of) in zip(range(len(rows), 0, -1), rows, strict=True):
            ids += tokens
            kinds += [back if kind > 0 else kind for kind in of]
        return laid_out(ids, kinds)

    def fill(self, site, specs, weight, statistics, rng):
        if "demonstrations" not in statistics:
            return Vocabulary().fill(site, specs, weight, statistics, rng)
        ids = self.context(statistics["demonstrations"])["ids"]
        return rows_of(self.name, ids, specs, statistics["vocabulary"])
