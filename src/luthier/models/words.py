"""Sentences as lists of words: token ids, and where each word's first token stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.errors import DataError
from luthier.models.text import CHUNK, IGNORED, Rows, TextPreprocess

NOWHERE = -1
"""Of a word that has no token: cut off, or nothing to the tokenizer."""


class WordRows(Rows):
    """Encoded rows; `starts` says of each, for each word, at which of its tokens the word begins, or NOWHERE."""

    starts: list[np.ndarray]


def encode_words(
    pre: TextPreprocess, inputs: Sequence[Sequence[str]], targets: Sequence[Any] | None = None
) -> WordRows:
    """One dict per row, unpadded: input_ids, token_type_ids where the model takes them, and, with targets, labels: a
    word's tag at its first token, -100 elsewhere.

    inputs: the words of each row; targets: (words,) tag indices. Words are read as one text with a blank between, and a
    token belongs to the first word that it covers a character of, so that any fast tokenizer will do. Raises DataError
    for a row that is no list of words.
    """
    words = [_checked(row, i) for i, row in enumerate(inputs)]
    rows = encode_spans(pre, [" ".join(row) for row in words], [_spans(row) for row in words])
    if targets is not None:
        for row, starts, tags in zip(rows, rows.starts, targets, strict=True):
            row["labels"] = _labels(len(row["input_ids"]), starts, tags)
    return rows


def encode_spans(
    pre: TextPreprocess, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
) -> WordRows:
    """The same of texts as they are, of which spans of characters (begin, end), in order and apart, are the words."""
    rows = WordRows()
    rows.starts = []
    for begin in range(0, len(texts), CHUNK):
        made = pre._call(list(texts[begin : begin + CHUNK]))
        for i, encoding in enumerate(made.encodings):
            row: dict[str, Any] = {"input_ids": made["input_ids"][i] or [pre._filler()]}
            if pre.takes_types:
                row["token_type_ids"] = made["token_type_ids"][i] or [0]
            rows.append(row)
            rows.truncated.append(bool(encoding.overflowing))
            rows.starts.append(first_tokens(spans[begin + i], encoding.offsets))
    return rows


def _spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Where words joined by blanks begin and end."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return [(int(end) - len(word), int(end)) for word, end in zip(words, ends)]


def first_tokens(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """(spans,) int64: the first token of each span, by the characters that tokens cover; NOWHERE for none."""
    begins, ends = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    starts = np.full(len(spans), NOWHERE, np.int64)
    for at, (first, last) in enumerate(offsets):
        span = int(np.searchsorted(ends, first, side="right"))
        if span < len(spans) and first < last and last > begins[span] and starts[span] == NOWHERE:
            starts[span] = at
    return starts


def _labels(tokens: int, starts: np.ndarray, tags: Any) -> list[int]:
    labels = np.full(tokens, IGNORED, np.int64)
    tags = np.asarray(tags)
    if tags.shape != starts.shape:
        raise DataError(f"A row has {len(starts)} words and {len(tags)} tags. Give every word one tag.")
    labels[starts[starts >= 0]] = tags[starts >= 0]
    return labels.tolist()


def _checked(row: Any, number: int) -> list[str]:
    words = list(row) if isinstance(row, list | tuple | np.ndarray) else None
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise DataError(
            f"Row {number} is {str(row)[:40]!r} ({type(row).__name__}), not a list of words. Split the text into words."
        )
    return words
