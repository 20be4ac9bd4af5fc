"""`luthier predict` of an adaptation for retrieval: the texts nearest to each query, among the texts of a file."""

from __future__ import annotations

from typing import Any

from luthier.errors import OptionError

NEAREST = 5
"""Texts that are named for each query, unless --top says otherwise."""


def texts_among(among: str | None, data: str | None, column: str) -> list[str]:
    """The texts to search, each once: a column of the file --among, else of --data. OptionError where neither is given."""
    from luthier.data.unlabelled import read_texts

    if among is None and data is None:
        raise OptionError("Say where to search: --among FILE, whose lines or column hold the texts.")
    found = list(dict.fromkeys(read_texts(among or data or "", None if among else column)))
    if not found:
        raise OptionError(f"There are no texts to search in {among or data}.")
    return found


def findings(
    fitted: Any, rows: Any, texts: list[str], top: int | None, **settings: Any
) -> list[dict[str, Any]]:
    """One record per query: its number, its text, the nearest text with its cosine, and the `top` nearest."""
    said = fitted.search(rows, texts, top or NEAREST, **settings)
    queries = getattr(rows, "inputs", rows)
    records = []
    for number, (query, nearest) in enumerate(zip(queries, said, strict=True), 1):
        several = [{"text": texts[i], "similarity": cosine} for i, cosine in nearest]
        first = several[0]
        records.append(
            {
                "row": number,
                "input": query,
                "prediction": first["text"],
                "similarity": first["similarity"],
                "nearest": several,
            }
        )
    return records
