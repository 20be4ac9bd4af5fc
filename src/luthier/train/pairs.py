"""Rows of a retrieval: a query and the document that it is to find, each encoded once; a batch holds one behind the other.

Batches: (2 rows, tokens), a row's query and document; `labels` (rows,) numbers documents, equal texts alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.errors import DataError, ModelError, OptionError
from luthier.models.text import Rows

DOCUMENT = "document"
"""Key of an encoded row: its document, encoded as a text of its own."""


class Pairs:
    """Encoding and collation of one model's queries with their documents."""

    def __init__(self, pre: Any):
        self.pre = pre

    def rows(self, queries: Sequence[str], documents: Sequence[str]) -> Rows:
        """One dict a row: the query's tokens, and under DOCUMENT those of its document. A row counts as cut where either is."""
        ahead, behind = self.pre.encode(queries), self.pre.encode(documents)
        made = [{**q, DOCUMENT: dict(d)} for q, d in zip(ahead, behind, strict=True)]
        return Rows(made, [a or b for a, b in zip(ahead.truncated, behind.truncated, strict=True)])

    def collate(self, rows: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Tensor]:
        """(2 rows, tokens). What a row is told (attributes, covariates) holds for both of its texts."""
        apart: list[dict[str, Any]] = []
        for row in rows:
            query = {k: v for k, v in row.items() if k != DOCUMENT}
            apart += [query, {**query, **row[DOCUMENT]}]
        return self.pre.collate(apart, **options)  # type: ignore[no-any-return]


def longer(row: Mapping[str, Any]) -> int:
    """Tokens that a row's document has beyond its query's, for how wide a batch gets; 0 without a document."""
    return max(0, len(row[DOCUMENT]["input_ids"]) - len(row["input_ids"])) if DOCUMENT in row else 0


def check_batches(task: Any, batch_size: int, micro_batch: int | None, world: int) -> None:
    """A retrieval's negatives are the batch's other rows, so that a batch must stay in one piece. Raises OptionError."""
    if task.kind != "retrieval":
        return
    if batch_size < 2:
        raise OptionError(
            f"batch_size={batch_size}: retrieval learns from the batch's other rows, 2 at least."
        )
    if micro_batch is not None and micro_batch < batch_size:
        raise OptionError(
            f"micro_batch={micro_batch}: retrieval learns from all {batch_size} rows of a batch at once. Leave it out, and lower "
            "batch_size or add checkpointing where memory is short."
        )
    if world > 1:
        raise OptionError(
            f"Retrieval learns from all rows of a batch at once, and {world} processes share a batch out. Run it on one process."
        )


def check_reader(model: Any) -> None:
    """Refuse a model that makes no vector of a text. Raises ModelError."""
    if getattr(model.preprocess, "kind", None) != "text" or model.pooling == "none":
        raise ModelError(
            f"{model.name} makes no vector of a text, which retrieval needs: use a text model with its tokenizer, such as "
            "builtin:minilm, and a pooling of mean, cls or last."
        )


def embed(adapted: Any, encoded: Any, *, batch_size: int, device: Any, precision: str = "fp32") -> np.ndarray:
    """(rows, width) float32 unit vectors of encoded texts, or (rows, 2, width) of encoded pairs, by what is attached."""
    from luthier.train.batches import in_order
    from luthier.train.predict import autocast, put_in_order

    found = []
    adapted.eval()
    with torch.no_grad(), adapted.using("main"), autocast(precision, device):
        for rows, batch in in_order(encoded, batch_size, device):
            vectors = adapted(batch).logits.float()
            vectors = vectors.unflatten(0, (-1, encoded.per_row)) if encoded.per_row > 1 else vectors
            found.append((rows, vectors.cpu().numpy()))
    return put_in_order(found, len(encoded))


def ranks_of(vectors: np.ndarray, documents: Tensor | None) -> np.ndarray:
    """(rows,) rank of each row's document among all. vectors: (rows, 2, width); documents: (rows,), equal for equal texts."""
    from luthier.data.ranks import ranks

    if documents is None:
        raise DataError("These rows name no document to find: give data with the label column.")
    first, own = np.unique(documents.numpy(), return_index=True, return_inverse=True)[1:]
    return ranks(vectors[:, 0], vectors[first, 1], own)
