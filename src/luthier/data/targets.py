"""Targets: the kind of task that a label column poses, the mapping from names to indices, the arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.data.columns import NUMBER, missing, sort_of
from luthier.data.inputs import numbers
from luthier.data.tables import Table, listed
from luthier.data.task import Kind, Task
from luthier.data.words import fits_words, tags_of
from luthier.data.write import plain, quote
from luthier.errors import DataError

CLASSES = 10_000  # more different labels than this are no classes


def values_of(table: Table, label: str) -> list[Any]:
    """The label of each row as Python values: text stripped, None where there is none."""
    values = table.columns[label]
    if isinstance(values, np.ndarray):
        return values.tolist()
    return [_stripped(value) for value in values]


def _stripped(value: Any) -> Any:
    return (value.strip() or None) if isinstance(value, str) else value


def guess_kind(table: Table, label: str, values: list[Any], inputs: tuple[str, ...] = ()) -> Kind:
    """classification, multilabel, regression or, where lists are as long as those of the input's words, tagging, by what
    the labels are. Raises where they could be two."""
    if len(inputs) == 1 and fits_words(table.columns[inputs[0]], table.columns[label]):
        return "tagging"
    some = [value for value in values if value is not None]
    where = f"{plain(table.name)}: column {quote(label)}"
    if not some:
        raise DataError(f"{where} holds no labels: every row is empty there")
    if all(isinstance(value, list | tuple) for value in some):
        return "multilabel"
    if any(isinstance(value, list | tuple | dict) for value in some):
        raise DataError(f"{where} mixes lists with single labels: write a list in every row, or in none")
    different = len(set(some))
    if all(_is_decimal(value) for value in some) and any(_has_point(value) for value in some):
        if different <= 20 and all(float(value).is_integer() for value in some):
            raise DataError(
                f"{where} holds {different} whole decimals: say --kind classification or regression"
            )
        return "regression"
    if different > 20 and different > len(some) / 2:
        number = sort_of(some) == "number"
        raise DataError(
            f"{where} holds {different} different labels in {len(some)} rows, too many for classes: say "
            + ("--kind regression" if number else "--kind text2text or retrieval")
            + ", or name another column with --label"
        )
    return "classification"


def _is_decimal(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) or (isinstance(value, str) and bool(NUMBER.fullmatch(value)))


def _has_point(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, str) and not value.lstrip("+-").isdigit())


def without_label(values: list[Any], kind: str) -> np.ndarray:
    """(rows,) bool: the rows that have no label. An empty list is a multilabel row's label: none applies."""
    if kind == "regression":  # a gap among decimals is NaN there and refused by name
        return np.array([value is None for value in values], dtype=bool)
    return np.array(
        [value is None or (isinstance(value, float) and value != value) for value in values], dtype=bool
    )


def classes_of(table: Table, row: int, value: Any, kind: str) -> tuple[str, ...]:
    """The names that a label stands for: one; for multilabel a list, or names joined by |; for tagging a list, or
    names joined by blanks."""
    if kind == "tagging":
        return tuple(_name(table, row, each) for each in tags_of(value))
    if kind == "multilabel":
        if isinstance(value, str):
            value = [each.strip() for each in value.split("|") if each.strip()]
        elif isinstance(value, list | tuple | np.ndarray):
            value = list(value)
        else:
            value = [value]
        return tuple(_name(table, row, each) for each in value)
    return (_name(table, row, value),)


def _name(table: Table, row: int, value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating) and value == value and float(value).is_integer():
        return str(int(value))
    if isinstance(value, int | float | np.number) and value == value:
        return str(value)
    if isinstance(value, str):
        return value.strip()
    raise DataError(
        f"{plain(table.at(row))}: the label is a {type(value).__name__}; a class is a text or a number "
        "(several classes: --kind multilabel)"
    )


def read_attributes(table: Table, columns: Sequence[str]) -> np.ndarray | None:
    """(rows, columns) texts: what an adaptation is told with every row; None without columns. Raises where one is empty."""
    if not columns:
        return None
    made = []
    for column in columns:
        if column not in table.columns:
            raise missing(table, column, "attribute")
        values = values_of(table, column)
        if bare := [row for row, value in enumerate(values) if value is None or value != value]:
            raise DataError(
                f"{plain(table.at(bare[0]))}: the attribute {quote(column)} is empty; every row needs one"
            )
        made.append([_name(table, row, value) for row, value in enumerate(values)])
    return np.array(made, dtype=str).T


def label_names(names: set[str]) -> tuple[str, ...]:
    """Index -> name: sorted by code point, whole numbers by value."""
    if all(name.removeprefix("-").isdecimal() and name.isascii() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def learn_labels(table: Table, label: str, values: list[Any], kind: Kind) -> tuple[str, ...]:
    """The label mapping of the train rows. Raises where they hold one class only, or absurdly many."""
    if kind not in ("classification", "multilabel", "tagging"):
        return ()
    array = table.columns[label]
    if kind == "multilabel" and isinstance(array, np.ndarray) and array.ndim == 2:
        return tuple(str(at) for at in range(array.shape[1]))
    seen = {name for row, value in enumerate(values) for name in classes_of(table, row, value, kind)}
    where = f"{plain(table.name)}: column {quote(label)}"
    if len(seen) > CLASSES:
        raise DataError(f"{where} holds {len(seen)} different labels; at most {CLASSES} classes are learnt")
    if kind != "multilabel" and len(seen) < 2:
        raise DataError(
            f"{where} holds one {'tag' if kind == 'tagging' else 'class'} only ({listed(map(quote, seen))}, {len(values)} rows); two are needed: "
            f"is it the label? Columns: {listed(table.columns)}"
        )
    if not seen:
        raise DataError(f"{where} holds no label at all: every list is empty")
    return label_names(seen)


def read_targets(table: Table, values: list[Any], task: Task, known: str) -> Any:
    """Targets as a Split holds them. A label that the mapping lacks raises; `known` says whose it is."""
    if task.kind == "regression":
        return numbers(table, task.label)
    if task.kind in ("text2text", "retrieval"):
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise DataError(
                    f"{plain(table.at(row))}: the target is a {type(value).__name__}; text is expected"
                )
        return list(values)
    index = {name: at for at, name in enumerate(task.labels)}
    array = table.columns[task.label]
    if task.kind == "multilabel" and isinstance(array, np.ndarray) and array.ndim == 2:
        if array.shape[1] != len(index) or not np.isin(array, (0, 1)).all():
            raise DataError(f"{plain(table.name)}: multi-label arrays are (rows, {len(index)}) of 0 and 1")
        return array.astype(np.float32)
    rows = [
        [_index(table, row, name, index, known) for name in classes_of(table, row, value, task.kind)]
        for row, value in enumerate(values)
    ]
    if task.kind == "classification":
        return np.array([row[0] for row in rows], dtype=np.int64)
    if task.kind == "tagging":
        return [np.array(row, dtype=np.int64) for row in rows]
    targets = np.zeros((len(rows), len(index)), dtype=np.float32)
    for at, columns in enumerate(rows):
        targets[at, columns] = 1
    return targets


def _index(table: Table, row: int, name: str, index: dict[str, int], known: str) -> int:
    if name not in index:
        raise DataError(
            f"{plain(table.at(row))}: label {quote(name)} is not among the {len(index)} of {known} "
            f"({listed(index, 8)}): mend the label, or add rows of it to the train part"
        )
    return index[name]
