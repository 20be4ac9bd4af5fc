"""Baselines of retrieval: the words that a query and a text share, and the frozen model's own vectors.

Neither is fitted to the pairs; both rank each row's document among all that the split names (`luthier.data.ranks`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from luthier.data.ranks import numbered, ranks, ranks_by
from luthier.errors import DataError

RETRIEVAL = ("tfidf", "frozen")
Ranked = Callable[[Any], np.ndarray]
"""A split of pairs -> (rows,) ranks."""


def fit_retrieval(name: str, model: Any, data: Any, batch_size: int) -> tuple[Ranked, int]:
    """(the baseline of that name, bytes that it keeps)."""
    return _frozen(model, batch_size) if name == "frozen" else _words(data)


def _words(data: Any) -> tuple[Ranked, int]:
    """Cosine of TF-IDF, its weights those of the training queries and documents."""
    from luthier.compare.baselines import _vectoriser

    vectors = _vectoriser()
    try:
        vectors.fit([*data.train.inputs, *data.train.targets])
    except ValueError:
        raise DataError("TF-IDF found no words in the training texts. Check the columns.") from None

    def ranked(split: Any) -> np.ndarray:
        own, first = numbered(split.targets)
        queries = vectors.transform(split.inputs)
        known = vectors.transform([split.targets[i] for i in first]).T
        return ranks_by(lambda rows: (queries[rows] @ known).toarray(), own)

    return ranked, sum(len(word.encode()) + 8 for word in vectors.vocabulary_)


def _frozen(model: Any, batch_size: int) -> tuple[Ranked, int]:
    """Cosine of the model's hidden states, pooled as it says."""
    from luthier.compare.baselines import features

    def ranked(split: Any) -> np.ndarray:
        own, first = numbered(split.targets)
        texts = [*split.inputs, *(split.targets[i] for i in first)]
        vectors = features(model, texts, batch_size)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return ranks(vectors[: len(split)], vectors[len(split) :], own)

    return ranked, 0
