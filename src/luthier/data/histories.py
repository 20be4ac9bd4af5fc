"""Histories: for each row a list of texts, oldest first, that says something of where the row comes from (what a user did)."""

import json
from typing import Any

import numpy as np

from luthier.data.tables import Table
from luthier.data.write import plain, quote
from luthier.errors import DataError

History = tuple[str, ...]
"""The texts of one row, oldest first; empty ones left out. A row may have none."""


def read_histories(table: Table, name: str) -> list[History]:
    """A column of lists of texts; in a file of texts each cell is a JSON list. Raises DataError naming the row."""
    return [_history(table, row, name, value) for row, value in enumerate(table.columns[name])]


def _history(table: Table, row: int, name: str, value: Any) -> History:
    where = f"{plain(table.at(row))}: column {quote(name)}"
    if (
        value is None
        or (isinstance(value, float) and value != value)
        or (isinstance(value, str) and not value.strip())
    ):
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list | tuple | np.ndarray):
        raise DataError(
            f'{where} holds no list of texts; in a CSV file write one as JSON: ["first", "second"]'
        )
    for at, text in enumerate(value, 1):
        if not isinstance(text, str):
            raise DataError(f"{where}: item {at} is a {type(text).__name__}; a text is expected")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"{where}: item {at} holds half of a surrogate pair: mend it") from None
    return tuple(str(text) for text in value if text.strip())
