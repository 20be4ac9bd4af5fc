"""What to know of data before trusting a figure: copies, leaks, contradictions, imbalance."""

import hashlib
from collections.abc import Hashable
from typing import Any

import numpy as np

from luthier.data.split import Data, Split
from luthier.data.write import plain, quote

FEW = 10  # train rows of a class, below which its score says little
UNEVEN = 10  # largest class over smallest


def keys(inputs: Any) -> list[Hashable]:
    """One key a row; copies share it. Texts are copies when they differ in case or white space only."""
    if isinstance(inputs, np.ndarray):
        return [
            hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest() for row in inputs
        ]
    return [tuple(map(_same, row)) if isinstance(row, tuple) else _same(row) for row in inputs]


def keys_of(split: Split) -> list[Hashable]:
    """One key a row of a split, its history counted in."""
    if split.histories is None:
        return keys(split.inputs)
    return [
        (key, tuple(map(_same, own))) for key, own in zip(keys(split.inputs), split.histories, strict=True)
    ]


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def notes(data: Data) -> list[str]:
    """One line for each finding, none where there is nothing to say."""
    found = [*_copies(data.train, data.task.kind in ("classification", "multilabel")), *_balance(data)]
    seen = {key: row for row, key in reversed(list(enumerate(keys_of(data.train))))}
    for name in ("validation", "test"):
        part = getattr(data, name)
        if part is not None:
            rows = [row for row, key in enumerate(keys_of(part)) if key in seen]
            if rows:
                found.append(
                    f"{len(rows)} of {len(part)} {name} rows are also train rows{_example(part, rows[0])}: "
                    f"{name} scores are flattered"
                )
    return found


def _copies(train: Split, labelled: bool) -> list[str]:
    first: dict[Hashable, int] = {}
    copies: list[int] = []
    conflicts: list[int] = []
    for row, key in enumerate(keys_of(train)):
        if key in first:
            copies.append(row)
            if labelled and not np.array_equal(train[row][1], train[first[key]][1]):
                conflicts.append(row)
        else:
            first[key] = row
    found = []
    if copies:
        found.append(f"{len(copies)} of {len(train)} train rows repeat another{_example(train, copies[0])}")
    if conflicts:
        found.append(
            f"Repeated rows with conflicting labels: {len(conflicts)}{_example(train, conflicts[0])}: "
            "no model can learn both"
        )
    return found


def _example(split: Split, row: int) -> str:
    if isinstance(split.inputs, np.ndarray):
        return f" (row {row + 1})"
    text = split.inputs[row]
    return f" ({quote(text if isinstance(text, str) else (' | ' if len(text) == 2 else ' ').join(text))})"


def _balance(data: Data) -> list[str]:
    task = data.task
    if task.kind not in ("classification", "multilabel"):
        return []
    targets = np.asarray(data.train.targets)
    if task.kind == "classification":
        counts = np.bincount(targets, minlength=len(task.labels))
    else:
        counts = targets.sum(axis=0).astype(np.int64)
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[least] >= FEW and counts[most] <= UNEVEN * counts[least]:
        return []
    return [
        f"Classes are uneven: {plain(task.labels[most], 40)} has {counts[most]} train rows, "
        f"{plain(task.labels[least], 40)} {counts[least]}: read macro_f1, consider class_weights"
    ]
