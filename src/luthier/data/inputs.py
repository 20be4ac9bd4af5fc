"""Inputs: from a table's columns to texts, pairs, words, images or arrays, every row checked."""

from typing import Any

import numpy as np

from luthier.data.columns import sort_of
from luthier.data.images import packed_images
from luthier.data.tables import Table, listed
from luthier.data.task import Modality
from luthier.data.words import is_words, read_words
from luthier.data.write import plain, quote
from luthier.errors import DataError


def modality_of(table: Table, inputs: tuple[str, ...]) -> Modality:
    """What a model is given: text, a pair of texts, words, images or arrays of numbers."""
    values = table.columns[inputs[0]]
    if len(inputs) == 1:
        if is_words(values):
            return "words"
        if isinstance(values, np.ndarray):
            return "text" if values.dtype.kind == "U" else "image" if _is_images(values) else "array"
        return {"list": "array", "image": "image"}.get(sort_of(values), "text")  # type: ignore[return-value]
    sorts = {name: sort_of(table.columns[name]) for name in inputs}
    if all(sort == "number" for sort in sorts.values()):
        return "array"
    if len(inputs) == 2 and all(sort in ("text", "number", "nothing") for sort in sorts.values()):
        return "pair"
    odd = [name for name in inputs if sorts[name] != "number"]
    raise DataError(
        f"{plain(table.name)}: {len(inputs)} input columns make numbers in a row, or two texts a pair; "
        f"these are not numbers: {listed(odd)}"
    )


def read_inputs(table: Table, inputs: tuple[str, ...], modality: Modality) -> tuple[Any, np.ndarray]:
    """(inputs as a Split holds them, (rows,) bool: rows whose text is empty). Errors name the line."""
    if modality in ("text", "pair"):
        texts = [_texts(table, name) for name in inputs]
        empty = np.array([any(not text.strip() for text in row) for row in zip(*texts)], dtype=bool)
        return (texts[0] if modality == "text" else list(zip(*texts))), empty
    whole = np.zeros(len(table), dtype=bool)
    if modality == "words":
        return read_words(table, inputs[0]), whole
    if modality == "image":
        return _images(table, inputs[0]), whole
    if len(inputs) > 1:
        return np.stack([numbers(table, name) for name in inputs], axis=1), whole
    return _array(table, inputs[0]), whole


def numbers(table: Table, name: str) -> np.ndarray:
    """(rows,) float32 of a column of numbers. Raises for text, gaps, NaN and infinity, naming the row."""
    values = table.columns[name]
    out = np.empty(len(table), dtype=np.float64)
    for row, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        try:
            if value is None or isinstance(value, bool | dict | list):
                raise ValueError
            out[row] = float(value)
        except (ValueError, TypeError, OverflowError):
            raise DataError(
                f"{plain(table.at(row))}: column {quote(name)} holds {quote(value)}; a number is expected"
            ) from None
    _finite(table, name, out)
    return out.astype(np.float32)


def _finite(table: Table, name: str, values: np.ndarray) -> None:
    largest = np.finfo(np.float32).max
    bad = ~(np.abs(values) <= largest)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"{plain(table.at(row))}: column {quote(name)} holds NaN, infinity or more than float32 can: "
            "drop the row or fill it in"
        )


def _texts(table: Table, name: str) -> list[str]:
    values = table.columns[name]
    if isinstance(values, np.ndarray):
        values = values.tolist()
    texts = []
    for row, value in enumerate(values):
        if isinstance(value, str):
            texts.append(value)
        elif value is None or value != value:  # NaN: how pandas writes a missing text
            texts.append("")
        else:
            what = (
                "a list; join its words to one text"
                if isinstance(value, list)
                else f"a {type(value).__name__}"
            )
            raise DataError(f"{plain(table.at(row))}: column {quote(name)} holds {what}; text is expected")
    for row, text in enumerate(texts):
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                where = plain(table.at(row))
                raise DataError(
                    f"{where}: column {quote(name)} holds half of a surrogate pair: mend it"
                ) from None
    return texts


def _is_images(values: np.ndarray) -> bool:
    """uint8 (rows, H, W), (rows, H, W, C) or (rows, C, H, W): pictures have sides of at least 8."""
    if values.dtype != np.uint8 or values.ndim not in (3, 4):
        return False
    sides = values.shape[1:] if values.ndim == 3 else _sides(values)
    return sides is not None and min(sides) >= 8


def _sides(values: np.ndarray) -> tuple[int, ...] | None:
    if values.shape[3] in (1, 3, 4):
        return values.shape[1:3]
    return values.shape[2:] if values.shape[1] in (1, 3, 4) else None


def _images(table: Table, name: str) -> np.ndarray:
    values = table.columns[name]
    if not isinstance(values, np.ndarray):
        for row, value in enumerate(values):
            if not isinstance(value, dict) or not isinstance(value.get("bytes"), bytes):
                raise DataError(
                    f"{plain(table.at(row))}: the image is not in the file itself: embed its bytes"
                )
        return packed_images(plain(table.name), [value["bytes"] for value in values])
    if values.ndim == 3:
        values = values[..., None]
    elif values.shape[3] not in (1, 3, 4):
        values = values.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(values[..., :3] if values.shape[3] == 4 else values)


def _array(table: Table, name: str) -> np.ndarray:
    """Decimals become float32; whole numbers int64, since they may be indices."""
    values = table.columns[name]
    if not isinstance(values, np.ndarray):
        try:
            values = np.array(values)
        except (ValueError, OverflowError):
            values = np.empty(0, object)
    if values.dtype.kind not in "biuf" or len(values) != len(table):
        raise DataError(
            f"{plain(table.name)}: column {quote(name)} holds lists of different lengths, or of no "
            "numbers: give every row the same shape"
        )
    if values.dtype.kind == "f":
        _finite(table, name, values)
        return values.astype(np.float32)
    return values.astype(np.int64)
