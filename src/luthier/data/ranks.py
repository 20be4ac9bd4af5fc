"""Ranks of what was to be found, and the scores of a retrieval.

Every text that some row of a split names is a candidate, once. rank of a row = 1 + the other candidates that are at least as
similar to its query as its own document; a tie counts against the row, so that a model that calls everything alike finds nothing.
MRR = mean 1 / rank; recall@k = share of rows with rank <= k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from luthier.errors import DataError

CHUNK = 512
"""Queries whose similarities are held at once."""
AT = (1, 5, 10)


def numbered(documents: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """((rows,) int64: which candidate each row's document is, the first row of each candidate)."""
    first: dict[str, int] = {}
    rows: list[int] = []
    for row, text in enumerate(documents):
        if text not in first:
            first[text] = len(rows)
            rows.append(row)
    return np.array([first[text] for text in documents], dtype=np.int64), rows


def ranks(queries: np.ndarray, candidates: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(rows,) int64. queries: (rows, width); candidates: (candidates, width), compared by their inner product; own: (rows,).

    Raises DataError for vectors that are not finite."""
    if not (np.isfinite(queries).all() and np.isfinite(candidates).all()):
        raise DataError("The vectors of some texts hold NaN or infinity: the model has diverged")
    return ranks_by(lambda rows: queries[rows] @ candidates.T, own)


def ranks_by(similar: Callable[[slice], np.ndarray], own: np.ndarray) -> np.ndarray:
    """The same of any likeness: similar(rows) is (rows, candidates) for a slice of the queries."""
    found = []
    for begin in range(0, len(own), CHUNK):
        rows = slice(begin, begin + CHUNK)
        made = similar(rows)
        mine = made[np.arange(len(made)), own[rows]]
        found.append((made >= mine[:, None]).sum(1))
    return np.concatenate(found).astype(np.int64)


def retrieval_scores(found: Any) -> dict[str, float]:
    """MRR and recall@k of ranks (rows,). Raises DataError for what is no rank."""
    held = np.asarray(found)
    if held.ndim != 1 or held.dtype.kind not in "iu" or held.min() < 1:
        raise DataError(
            f"Predictions have shape {held.shape} of {held.dtype}: retrieval scores ranks, whole numbers from 1"
        )
    return {"mrr": float((1 / held).mean())} | {f"recall@{k}": float((held <= k).mean()) for k in AT}
