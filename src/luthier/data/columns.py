"""Which column is what: the input and the label, as asked or as their names tell, never by a coin's toss."""

import difflib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.data.tables import Table, listed
from luthier.data.words import fitting_columns
from luthier.data.write import plain, quote
from luthier.errors import DataError

NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")
_NAMES = {"label": ("label_name", "label_text"), "labels": ("label_names", "labels_text")}
_LABELS = ("label", "labels", "label_name", "label_text")
_PERHAPS_LABELS = (
    *(
        "class",
        "category",
        "target",
        "targets",
        "y",
        "sentiment",
        "intent",
        "topic",
        "emotion",
        "score",
        "rating",
    ),
    *("stars", "similarity", "family"),
)
_TEXTS = ("text", "sentence", "input")
_PERHAPS_TEXTS = (
    *(
        "review",
        "content",
        "question",
        "comment",
        "tweet",
        "utterance",
        "query",
        "document",
        "body",
        "message",
    ),
    *("headline", "title", "abstract", "prompt", "mechanism"),
)
_PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2")),
    *(("text_a", "text_b"), ("sentence_a", "sentence_b"), ("question", "sentence"), ("query", "passage")),
    ("first", "second"),
)
_TEXT2TEXT = (
    *(
        ("input", "target"),
        ("input", "output"),
        ("source", "target"),
        ("prompt", "completion"),
        ("text", "summary"),
    ),
    *(("prompt", "response"), ("instruction", "output"), ("question", "answer"), ("document", "summary")),
    *(("article", "highlights"), ("text", "target"), ("text", "label")),
)
_RETRIEVAL = tuple(
    (query, found)
    for query in ("query", "question", "docstring", "comment")
    for found in ("code", "document", "passage", "function")
)
_SAMPLE = 1000


@dataclass(frozen=True)
class Chosen:
    """The input's columns in order, the label's, and what was guessed (for the notes)."""

    inputs: tuple[str, ...]
    label: str
    notes: tuple[str, ...] = ()


def sort_of(values: Any) -> str:
    """What a column holds, from its first values: text, number, list, image, array or nothing."""
    if isinstance(values, np.ndarray):
        return "array" if values.ndim > 1 else "number" if values.dtype.kind in "biuf" else "text"
    some = [value for value in values[:_SAMPLE] if value is not None and value != ""]
    if not some:
        return "nothing"
    if all(isinstance(value, str) for value in some):
        return "number" if all(NUMBER.fullmatch(value) for value in some) else "text"
    if all(isinstance(value, bool | int | float) for value in some):
        return "number"
    if all(isinstance(value, list | tuple | np.ndarray) for value in some):
        return "list"
    if all(isinstance(value, dict) and "bytes" in value for value in some):
        return "image"
    return "text" if any(isinstance(value, str) for value in some) else "other"


def choose(table: Table, input: Any, label: str | None, kind: str | None) -> Chosen:
    """The columns to read: those asked for, which must exist, else those that their names make clear.

    Raises DataError that lists the columns and names the option to give, where a column is missing or
    several fit.
    """
    if input is None and label is None and kind in ("text2text", "retrieval"):
        known = _TEXT2TEXT if kind == "text2text" else _RETRIEVAL
        fitting = [pair for pair in known if set(pair) <= set(table.columns)]
        if len(fitting) == 1:
            return _described(table, (fitting[0][0],), fitting[0][1], True)
        what = ("input", "target text") if kind == "text2text" else ("query", "text to find")
        raise _unclear(table, f"the {what[0]} and which the {what[1]}")
    if input is None and label is None and kind in (None, "tagging"):
        tagged = fitting_columns(table)
        if len(tagged) == 1:
            return _described(table, (tagged[0][0],), tagged[0][1], True)
        if tagged:
            raise _unclear(table, "the words and which their tags")
    inputs = None if input is None else asked(table, input)
    if label is not None and label not in table.columns:
        raise missing(table, label, "label")
    chosen_label = label if label is not None else _label(table, kind, set(inputs or ()))
    chosen = inputs if inputs is not None else _input(table, chosen_label)
    if chosen_label in chosen:
        raise DataError(f"{plain(table.name)}: column {quote(chosen_label)} cannot be both input and label")
    return _described(table, chosen, chosen_label, input is None or label is None)


def asked(table: Table, input: Any) -> tuple[str, ...]:
    """The columns that `input` names: one name, several joined by commas, or a tuple of names."""
    if isinstance(input, str):
        names = (input,) if input in table.columns else tuple(each.strip() for each in input.split(","))
    else:
        names = tuple(str(each) for each in input)
    for name in names:
        if name not in table.columns:
            raise missing(table, name, "input")
    return names


def missing(table: Table, name: str, option: str) -> DataError:
    """The error for a column that the table lacks."""
    close = difflib.get_close_matches(name, list(table.columns), 1) or [
        each for each in table.columns if each.lower() == name.lower()
    ]
    hint = f"Did you mean {quote(close[0])}?" if close else f"Name one with --{option}"
    return DataError(
        f"{plain(table.name)} has no column {quote(name)}. Columns: {listed(table.columns)}. {hint}"
    )


def _described(table: Table, inputs: tuple[str, ...], label: str, guessed: bool) -> Chosen:
    rest = [name for name in table.columns if name not in (*inputs, label)]
    notes = []
    if guessed and rest:
        notes.append(f"Input read from {listed(inputs)}, label from {plain(label, 40)}, by their names")
        notes.append(f"Columns not used: {listed(rest)}")
    return Chosen(inputs, label, tuple(notes))


def _unclear(table: Table, what: str) -> DataError:
    return DataError(
        f"{plain(table.name)}: which column is {what}? Columns: {listed(table.columns)}. Name them with "
        "--input and --label (a pair: --input FIRST,SECOND)"
    )


def _label(table: Table, kind: str | None, taken: set[str]) -> str:
    columns = [name for name in table.columns if name not in taken]
    for number, names in _NAMES.items():
        name = next((each for each in names if each in columns), None)
        if number in columns and name is not None:
            if kind == "regression":
                return number
            if _bijective(table.columns[number], table.columns[name]):
                return name
            raise DataError(
                f"{plain(table.name)}: {quote(number)} and {quote(name)} differ: choose one by --label"
            )
    for known in (_LABELS, _PERHAPS_LABELS):
        fitting = [name for name in columns if name.lower() in known]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise _unclear(table, "the label")
    if len(table.columns) == 2 and len(columns) == 1:
        return columns[0]
    if len(columns) == 2 and len(text := [each for each in columns if each.lower() in _TEXTS]) == 1:
        return next(each for each in columns if each not in text)
    raise _unclear(table, "the label")


def _bijective(numbers: Any, names: Any) -> bool:
    pairs = {(str(a), str(b)) for a, b in zip(numbers, names)}
    return len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


def _input(table: Table, label: str) -> tuple[str, ...]:
    twins = {
        each for number, names in _NAMES.items() if label in (number, *names) for each in (number, *names)
    }
    columns = [name for name in table.columns if name not in twins | {label}]
    sorts = {name: sort_of(table.columns[name]) for name in columns}
    lower = {name.lower(): name for name in columns}
    for wanted in ("array", "image"):
        if len(fitting := [name for name in columns if sorts[name] == wanted]) == 1:
            return (fitting[0],)
    pairs = [tuple(lower[each] for each in pair) for pair in _PAIRS if set(pair) <= set(lower)]
    texts = [lower[each] for each in _TEXTS if each in lower]
    if len(pairs) == 1 and not [each for each in texts if each not in pairs[0]]:
        return pairs[0]
    perhaps = [lower[each] for each in _PERHAPS_TEXTS if each in lower]
    for fitting in () if pairs else (texts, perhaps):
        if len(fitting) == 1:
            return (fitting[0],)
        if fitting:
            raise _unclear(table, "the input")
    if not pairs and len(columns) == 1:
        return (columns[0],)
    if not pairs and columns and all(sort == "number" for sort in sorts.values()):
        return tuple(columns)
    long = [name for name in columns if sorts[name] == "text" and _wordy(table.columns[name])]
    if not pairs and len(long) == 1:
        return (long[0],)
    raise _unclear(table, "the input")


def _wordy(values: list[Any]) -> bool:
    """Whether a column looks like text rather than like a category."""
    some = [value for value in values[:_SAMPLE] if isinstance(value, str)]
    return bool(some) and sum(map(len, some)) / len(some) >= 12 and len(set(some)) > len(some) / 2
