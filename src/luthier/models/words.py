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
    rows = WordRows()
    rows.starts = []
    for begin in range(0, len(inputs), CHUNK):
        part = [_checked(row, begin + i) for i, row in enumerate(inputs[begin : begin + CHUNK])]
        made = pre._call([" ".join(words) for words in part])
        for i, (words, encoding) in enumerate(zip(part, made.encodings)):
            row: dict[str, Any] = {"input_ids": made["input_ids"][i] or [pre._filler()]}
            if pre.takes_types:
                row["token_type_ids"] = made["token_type_ids"][i] or [0]
            starts = first_tokens(words, encoding.offsets)
            if targets is not None:
                row["labels"] = _labels(len(row["input_ids"]), starts, targets[begin + i])
            rows.append(row)
            rows.truncated.append(bool(encoding.overflowing))
            rows.starts.append(starts)
    return rows


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """(words,) int64: the first token of each word, by the characters that tokens cover; NOWHERE for none."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    begins = ends - [len(word) for word in words]
    starts = np.full(len(words), NOWHERE, np.int64)
    for at, (first, last) in enumerate(offsets):
        word = int(np.searchsorted(ends, first, side="right"))
        if word < len(words) and first < last and last > begins[word] and starts[word] == NOWHERE:
            starts[word] = at
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
