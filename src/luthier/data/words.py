"""Words and their tags: finding the two columns, and reading rows of a list of words with a list of tags."""

from typing import Any

import numpy as np

from luthier.data.tables import Table
from luthier.data.task import Task
from luthier.data.write import plain, quote
from luthier.errors import DataError

WORDS = ("tokens", "words", "token", "word", "forms", "form")
TAGS = ("tags", "ner_tags", "ner", "pos_tags", "pos", "upos", "iob", "chunk_tags", "labels", "label", "tag")
_SAMPLE = 1000

Row = tuple[str, ...]


def is_words(values: Any) -> bool:
    """Whether a column holds lists of texts, by its first rows."""
    some = _lists(values)
    return some is not None and all(isinstance(word, str | None) for row in some for word in row or ())


def fitting_columns(table: Table) -> list[tuple[str, str]]:
    """The pairs of columns (words, tags) that a table may mean: lists of texts beside lists as long, and a name that says
    so of either column."""
    lists = [name for name in table.columns if _lists(table.columns[name]) is not None]
    pairs = [
        (words, tags)
        for words in lists
        for tags in lists
        if words != tags and fits_words(table.columns[words], table.columns[tags])
    ]
    named = [(w, t) for w, t in pairs if w.lower() in WORDS and t.lower() in TAGS]
    return named or [(w, t) for w, t in pairs if w.lower() in WORDS or t.lower() in TAGS]


def fits_words(inputs: Any, values: Any) -> bool:
    """Whether a column of labels is one of tags: lists of as many as the row has words, in most rows (the others are
    faults to be named, not a sign of another task)."""
    words, tags = _lists(inputs), _lists(values)
    if words is None or tags is None or not is_words(inputs):
        return False
    both = [(a, b) for a, b in zip(words, tags) if a is not None and b is not None]
    return sum(len(a) == len(b) for a, b in both) * 2 >= len(both) > 0


def _lists(values: Any) -> list[Any] | None:
    """The first rows of a column of lists, with its gaps; None for any other column."""
    if not isinstance(values, list | tuple):
        return None
    some = list(values[:_SAMPLE])
    good = all(
        value is None
        or isinstance(value, list | tuple)
        or (isinstance(value, np.ndarray) and value.ndim == 1)
        for value in some
    )
    return some if good and any(value is not None and len(value) for value in some) else None


def read_words(table: Table, name: str) -> list[Row]:
    """The words of each row; a text is split at white space. Raises for a row without words, naming it."""
    return [_words(table, row, name, value) for row, value in enumerate(table.columns[name])]


def _words(table: Table, row: int, name: str, value: Any) -> Row:
    where = f"{plain(table.at(row))}: column {quote(name)}"
    words = value.split() if isinstance(value, str) else value
    if words is None or (isinstance(words, float) and words != words):
        words = []
    if not isinstance(words, list | tuple | np.ndarray):
        raise DataError(f"{where} holds a {type(words).__name__}; a list of words is expected")
    for at, word in enumerate(words, 1):
        if not isinstance(word, str) or not word.strip():
            found = "is empty" if isinstance(word, str) or word is None else f"is a {type(word).__name__}"
            raise DataError(
                f"{where}: word {at} {found}: give every word as a text, or take it out with its tag"
            )
        if not word.isascii():
            try:
                word.encode()
            except UnicodeEncodeError:
                raise DataError(f"{where}: word {at} holds half of a surrogate pair: mend it") from None
    if not len(words):
        raise DataError(f"{where} holds no words: take the empty sentence out")
    return tuple(map(str, words))


def tags_of(value: Any) -> list[Any]:
    """One row's tags as they were given; a text is split at white space."""
    if isinstance(value, str):
        return value.split()
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def check_lengths(table: Table, task: Task, inputs: Any, rows: list[Any]) -> None:
    """Raises DataError for a row with another number of tags than of words."""
    for row, (words, tags) in enumerate(zip(inputs, rows)):
        if len(words) != len(tags):
            raise DataError(
                f"{plain(table.at(row))}: {len(words)} words in {quote(task.input)} and {len(tags)} tags in "
                f"{quote(task.label)}: give every word one tag"
            )
