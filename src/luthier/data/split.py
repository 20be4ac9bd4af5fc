"""Split and Data: rows with their targets, and the parts that a run trains, validates and tests on."""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.data.task import Task


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """A sequence of rows.

    inputs   list of texts; list of pairs of texts; list of tuples of words, tagging; array (rows, H, W, C) uint8 of images; array (rows, ...)
             of numbers
    targets  (rows,) int64 class indices; (rows,) float32 values; (rows, classes) float32 of 0 and 1,
             multi-label; list of texts, text2text and retrieval (each row's document); list of (words,) int64 tag indices, tagging; None where the rows came without labels
    attributes  labels that an adaptation is told with every row (control prefixes): (rows, attributes) texts, or (rows,) or
             (rows, attributes) int64, their numbers; or None
    covariates  (rows, covariates) float32: numbers that an adaptation is told with every row (a quality); or None
    histories  for each row a tuple of texts, oldest first (what its user did), which adaptations may read beside the input; or None
    """

    inputs: "list[str] | list[tuple[str, ...]] | np.ndarray"
    targets: "np.ndarray | list[str] | list[np.ndarray] | None" = None
    attributes: "np.ndarray | None" = None
    histories: "list[tuple[str, ...]] | None" = None
    covariates: "np.ndarray | None" = None

    def __post_init__(self) -> None:
        if self.histories is not None and len(self.inputs) != len(self.histories):
            raise DataError(f"{len(self.inputs)} inputs with {len(self.histories)} histories: one a row")
        if self.attributes is not None and len(self.inputs) != len(self.attributes):
            raise DataError(
                f"{len(self.inputs)} inputs with {len(self.attributes)} attributes: one entry a row"
            )
        if self.covariates is not None and len(self.inputs) != len(self.covariates):
            raise DataError(
                f"{len(self.inputs)} inputs with {len(self.covariates)} covariates: one entry a row"
            )
        if self.targets is not None and len(self.inputs) != len(self.targets):
            raise DataError(f"{len(self.inputs)} inputs with {len(self.targets)} targets: one target a row")

    def __repr__(self) -> str:
        return f"Split({len(self):,} rows{'' if self.targets is not None else ', without labels'})"

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.inputs[index], None if self.targets is None else self.targets[index]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: Sequence[int] | np.ndarray) -> "Split":
        """The rows at `indices`, in that order; a row may be taken more than once."""
        at = np.asarray(indices)
        if at.dtype == bool:
            at = np.flatnonzero(at)
        targets = None if self.targets is None else _take(self.targets, at)
        return Split(
            _take(self.inputs, at),
            targets,
            None if self.attributes is None else self.attributes[at],
            None if self.histories is None else _take(self.histories, at),
            None if self.covariates is None else self.covariates[at],
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of inputs and targets; equal on every machine for equal content."""
        state = hashlib.sha256(b"luthier split 1")
        _feed(state, self.inputs)
        _feed(state, self.targets)
        if self.attributes is not None:
            said = self.attributes
            _feed(state, said.tolist() if said.dtype.kind == "U" else said)
        if self.histories is not None:
            _feed(state, ["histories", self.histories])
        if self.covariates is not None:
            _feed(state, ["covariates", self.covariates])
        return state.hexdigest()


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """The parts of a data set with the task that they pose.

    validation and test are None where there are no such rows; notes are what a user should know (duplicates,
    class balance, dropped rows, what was guessed), one line each, free of control characters.
    """

    train: Split
    validation: Split | None
    test: Split | None
    task: "Task"
    name: str
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, Split]:
        """The parts that there are, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def rows(self) -> dict[str, int]:
        """How many rows each part has."""
        return {name: len(part) for name, part in self.parts.items()}

    def __repr__(self) -> str:
        """What it is and how much of it there is, on one line: the rows themselves are in its parts."""
        rows = ", ".join(f"{n:,} {name}" for name, n in self.rows.items())
        classes = f" of {len(self.task.labels)} labels" if self.task.labels else ""
        return f"Data({self.name!r}, {self.task.kind}{classes}, {rows} rows)"

    @cached_property
    def digest(self) -> str:
        """sha256 over the task and every part."""
        state = hashlib.sha256(self.task.model_dump_json().encode())
        for name, part in self.parts.items():
            state.update(f"\n{name} {part.digest}".encode())
        return state.hexdigest()

    def limit(
        self, train: int | None = None, validation: int | None = None, test: int | None = None
    ) -> "Data":
        """The first N rows of each part named. Parts that `load_data` divided itself are in random order."""
        asked = {"train": train, "validation": validation, "test": test}
        parts: dict[str, Split | None] = {}
        notes = list(self.notes)
        for name, most in asked.items():
            part = getattr(self, name)
            if most is not None and most < 1:
                raise DataError(f"A limit of {most} {name} rows leaves nothing: give at least 1")
            if most is not None and part is not None and most < len(part):
                notes.append(f"The first {most} of {len(part)} {name} rows are used")
                part = part.select(np.arange(most))
            parts[name] = part
        if self.task.kind == "classification" and parts["train"] is not self.train:
            whole = np.asarray(self.train.targets)
            classes, kept = len(np.unique(whole)), len(np.unique(whole[:train]))
            if kept < classes:
                notes.append(f"The limited train rows hold {kept} of {classes} classes: raise the limit")
        return replace(self, **parts, notes=tuple(notes))  # type: ignore[arg-type]


def controlled(rows: Any, labels: Sequence[str]) -> Split:
    """Rows (a split or inputs) of which every one is told the same labels, one for each attribute: to predict with a control."""
    split = rows if isinstance(rows, Split) else Split(rows)
    return replace(split, attributes=np.array([list(labels)] * len(split), dtype=str))


def covaried(rows: Any, values: Sequence[float]) -> Split:
    """Rows (a split or inputs) of which every one is told the same numbers, one for each covariate."""
    split = rows if isinstance(rows, Split) else Split(rows)
    return replace(split, covariates=np.array([list(values)] * len(split), dtype=np.float32))


def class_weights(split: Split, task: "Task") -> np.ndarray:
    """(classes,) float32: the inverse frequency of each class (of words, for tagging), with mean 1 over the classes that
    occur.

    A class without rows gets 1. Raises DataError for regression and text2text.
    """
    if task.kind not in ("classification", "multilabel", "tagging") or split.targets is None:
        raise DataError(f"Class weights need labelled classes; this is {task.kind}: leave class_weights off")
    targets = np.concatenate(list(split.targets)) if task.kind == "tagging" else np.asarray(split.targets)
    if task.kind != "multilabel":
        counts = np.bincount(targets, minlength=len(task.labels)).astype(np.float64)
    else:
        counts = targets.sum(axis=0, dtype=np.float64)
    weights = np.ones(len(task.labels))
    seen = counts > 0
    weights[seen] = 1 / counts[seen]
    weights[seen] /= weights[seen].mean() if seen.any() else 1
    return weights.astype(np.float32)


def _take(rows: Any, at: np.ndarray) -> Any:
    return rows[at] if isinstance(rows, np.ndarray) else [rows[index] for index in at.tolist()]


def _feed(state: Any, value: Any) -> None:
    """Adds a value to a sha256 so that no two contents write the same bytes: type, length, content."""
    if isinstance(value, np.ndarray):
        little = value.astype(value.dtype.newbyteorder("<"), copy=False)
        state.update(f"array {little.dtype.str} {value.shape};".encode())
        state.update(np.ascontiguousarray(little).data)
    elif isinstance(value, str):
        encoded = value.encode("utf-8", "surrogatepass")
        state.update(b"text" + struct.pack("<Q", len(encoded)) + encoded)
    elif isinstance(value, list | tuple):
        state.update(b"list" + struct.pack("<Q", len(value)))
        for item in value:
            _feed(state, item)
    elif value is None:
        state.update(b"none")
    else:
        raise TypeError(f"no digest for {type(value).__name__}")
