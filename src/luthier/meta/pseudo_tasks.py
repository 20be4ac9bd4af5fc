"""Pseudo tasks from unlabelled text: clusters of sentence embeddings, asked about in three formats (Pan et al. 2023, S306).

    pair      two sentences: are they of one cluster? yes or no
    choice    a sentence and `ways` others, A to D: which is of its cluster?
    cluster   a sentence and the telling words of `ways` clusters, A to D: which cluster is it of?

An episode has support and query rows, which share no sentence that is asked about, and the centre of its clusters.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.errors import DataError

FORMATS = ("pair", "choice", "cluster")
LETTERS = "ABCDEFGHIJ"

Rows = tuple[list[str], list[str]]
"""Inputs and answers."""


@dataclass(frozen=True)
class Episode:
    """One pseudo task. centre: (dimensions,), the mean of the centres of the clusters that it is about."""

    format: str
    support: Rows
    query: Rows
    centre: np.ndarray


class PseudoTasks:
    """Episodes over clusters of texts. rows: of support and query each; clusters with fewer than twice as many texts are left out."""

    def __init__(
        self,
        texts: Sequence[str],
        embeddings: np.ndarray,
        *,
        clusters: int = 250,
        rows: int = 16,
        ways: int = 4,
        seed: int = 0,
    ):
        from sklearn.cluster import KMeans

        if not 2 <= ways <= len(LETTERS):
            raise DataError(f"ways={ways}: a choice is between 2 and {len(LETTERS)}.")
        number = min(clusters, len(texts) // (2 * rows))
        if number < ways:
            raise DataError(
                f"{len(texts)} texts are too few for {ways} clusters of {2 * rows} each. Give more text, or fewer rows or ways."
            )
        found = KMeans(number, n_init=1, random_state=seed).fit(embeddings)
        members = [np.flatnonzero(found.labels_ == c) for c in range(number)]
        kept = [c for c in range(number) if len(members[c]) >= 2 * rows]
        if len(kept) < ways:
            raise DataError(
                f"Only {len(kept)} of {number} clusters have {2 * rows} texts, and {ways} are needed. Give more text, or fewer clusters."
            )
        self.members = [[texts[int(i)] for i in members[c]] for c in kept]
        self.centres = np.asarray(found.cluster_centers_)[kept]
        self.words = telling_words(self.members)
        self.rows, self.ways = rows, ways

    def draw(self, rng: random.Random, format: str) -> Episode:
        """An episode of a format."""
        make = {"pair": self._pair, "choice": self._choice, "cluster": self._cluster}[format]
        return make(rng)

    def _pair(self, rng: random.Random) -> Episode:
        own = rng.randrange(len(self.members))
        asked = rng.sample(self.members[own], 2 * self.rows)
        rows = []
        for i, text in enumerate(asked):
            if i % 2:
                rows.append((f"{text} / {self._outside(rng, own)}", "no"))
            else:
                rows.append((f"{text} / {self._beside(rng, own, text)}", "yes"))
        return self._episode("pair", rows, [own])

    def _choice(self, rng: random.Random) -> Episode:
        own = rng.randrange(len(self.members))
        rows = []
        for i, text in enumerate(rng.sample(self.members[own], 2 * self.rows)):
            right = i % self.ways
            options = [self._outside(rng, own) for _ in range(self.ways)]
            options[right] = self._beside(rng, own, text)
            rows.append((f"{text}? {listed(options)} The correct one is", LETTERS[right]))
        return self._episode("choice", rows, [own])

    def _cluster(self, rng: random.Random) -> Episode:
        chosen = rng.sample(range(len(self.members)), self.ways)
        options = listed([self.words[c] for c in chosen])
        each = -(-2 * self.rows // self.ways)
        texts = {c: rng.sample(self.members[c], each) for c in chosen}
        rows = [
            (f"{texts[c][n]}? {options} The correct one is", LETTERS[k])
            for n in range(each)
            for k, c in enumerate(chosen)
        ]
        return self._episode("cluster", rows[: 2 * self.rows], chosen)

    def _beside(self, rng: random.Random, own: int, text: str) -> str:
        """Another text of the cluster."""
        while (other := rng.choice(self.members[own])) == text:
            pass
        return other

    def _outside(self, rng: random.Random, own: int) -> str:
        """A text of another cluster."""
        other = rng.randrange(len(self.members) - 1)
        return rng.choice(self.members[other + (other >= own)])

    def _episode(self, format: str, rows: list[tuple[str, str]], clusters: list[int]) -> Episode:
        """The first half supports, the other asks; the order of answers is the same in both, and says nothing in a batch."""
        inputs, answers = [r[0] for r in rows], [r[1] for r in rows]
        n = self.rows
        return Episode(
            format, (inputs[:n], answers[:n]), (inputs[n:], answers[n:]), self.centres[clusters].mean(0)
        )


def listed(options: Iterable[str]) -> str:
    """ "A. first B. second ..."""
    return " ".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options))


def telling_words(members: Sequence[Sequence[str]]) -> list[str]:
    """Per cluster the word that is most its own: its share of the cluster's texts times the logarithm of how few clusters have it."""
    counts = [
        Counter(w for text in texts for w in set(re.findall(r"[^\W\d_]{3,}", text))) for texts in members
    ]
    having = Counter(w for c in counts for w in c)
    found: list[str] = []
    for number, (count, texts) in enumerate(zip(counts, members, strict=True)):
        scored = {
            w: n / len(texts) * math.log(1 + len(members) / having[w])
            for w, n in count.items()
            if w not in found
        }
        found.append(max(scored, key=lambda w: (scored[w], w)) if scored else f"group {number + 1}")
    return found


def similarity(one: Episode, other: Episode) -> float:
    """(1 + cosine) / 2 of the episodes' centres, from 0 to 1."""
    a, b = one.centre, other.centre
    cosine = float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12)
    return (1 + cosine) / 2


def embedded(model: Any, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """(texts, width) mean hidden states of an encoder, each of length 1."""
    import torch
    from torch.nn.functional import normalize

    from luthier.host import Adapted
    from luthier.methods.heads import pool

    rows, pre, adapted = model.preprocess.encode(list(texts)), model.preprocess, Adapted(model.base)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found: list[Any] = [None] * len(rows)
    with torch.no_grad():
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            batch = {k: v.to(model.device) for k, v in pre.collate([rows[i] for i in chosen]).items()}
            out = adapted(batch, body=True)
            states = normalize(pool(out.hidden, out.mask, "mean").float(), dim=-1).cpu().numpy()
            for i, state in zip(chosen, states, strict=True):
                found[i] = state
    return np.stack(found)
