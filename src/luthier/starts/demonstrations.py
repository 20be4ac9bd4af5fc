"""A start for contexts: training rows with their answers, as a model that learns in context reads them."""

from __future__ import annotations

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

    def layout(self, site, statistics):
        if "demonstrations" not in statistics:
            return None
        ids: list[int] = []
        kinds: list[int] = []
        rows = statistics["demonstrations"](self.shots, self.draw)
        for back, (tokens, of) in zip(range(len(rows), 0, -1), rows, strict=True):
            ids += tokens
            kinds += [back if kind > 0 else kind for kind in of]
        return laid_out(ids, kinds)

    def fill(self, site, specs, weight, statistics, rng):
        made = self.layout(site, statistics)
        if made is None:
            return Vocabulary().fill(site, specs, weight, statistics, rng)
        return rows_of(self.name, made["ids"], specs, statistics["vocabulary"])
