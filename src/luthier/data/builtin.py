"""The data sets that Luthier carries: no download, a fixed split, equal on every machine."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.data.split import Data

PREFIX = "builtin:"
BUILTIN: dict[str, str] = {
    "pydocs": "4,079 one-line summaries of Python's standard library -> the topic of their module (12)",
    "papers": "the mechanisms of 374 papers -> their family (15)",
    "digits": "1,797 images of handwritten digits, 8 x 8 -> the digit (10), from scikit-learn",
    "order-a": "3 or 4 digits -> the first put last (text to text, for a decoder)",
    "order-b": "3 or 4 digits -> the first and the last exchanged (text to text, for a decoder)",
    "order-c": "3 or 4 digits -> the first two exchanged (text to text, for a decoder)",
    "departments": "1,800 generated sentences about things -> the department of a shop (4)",
    "verdicts": "1,800 generated sentences -> praise, blame or neither (3)",
    "entities": "2,750 generated sentences -> persons, places and organisations, which share their names (IOB2 tags)",
}
"""Name -> what it is, in one line."""

SMALLEST_FAMILY = 10
"""Families of papers with fewer rows are one class, `other`."""


def builtin(name: str) -> Data:
    """The embedded data set `name`, with or without `builtin:`. Raises DataError for an unknown one."""
    short = name.removeprefix(PREFIX)
    if short not in BUILTIN:
        near = difflib.get_close_matches(short, BUILTIN, n=1)
        hint = f"Did you mean {PREFIX}{near[0]}? " if near else ""
        raise DataError(
            f"No embedded data is called {name!r}. {hint}There are: {', '.join(PREFIX + n for n in BUILTIN)}"
        )
    read = {"pydocs": _pydocs, "papers": _papers, "digits": _digits, "entities": _entities}
    return read[short]() if short in read else _generated(short)


def _generated(name: str) -> Data:
    """A task for the testbeds, which know its words but were not pretrained on it."""
    from luthier.models.testbeds import tasks

    return tasks.data(name)


def _pydocs() -> Data:
    packed = files("luthier.data").joinpath("pydocs.jsonl.gz").read_bytes()
    read = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    rows = [(row["text"], row["topic"], row["split"]) for row in read]
    notes = ("The summaries are part of Python: their licence is in luthier/data/NOTICE-pydocs.txt",)
    return _classification("pydocs", rows, input="text", label="topic", notes=notes)


def _papers() -> Data:
    from luthier.papers.catalogue import rows as papers

    sizes = Counter(paper.family for paper in papers())
    family = {f: f if n >= SMALLEST_FAMILY else "other" for f, n in sizes.items()}
    labelled = [(paper.mechanism, family[paper.family]) for paper in papers()]
    merged = sum(n < SMALLEST_FAMILY for n in sizes.values())
    notes = (f"{merged} families of fewer than {SMALLEST_FAMILY} papers are the class 'other'",)
    return _classification(
        "papers", _divided(labelled, str.encode), input="mechanism", label="family", notes=notes
    )


def _digits() -> Data:
    """Images as (rows, 8, 8, 1) uint8: the 17 levels of grey are spread over 0 to 255."""
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
    labelled = list(zip(images, (str(t) for t in found.target.tolist())))
    return _classification(
        "digits",
        _divided(labelled, lambda image: image.tobytes()),
        input="image",
        label="digit",
        modality="image",
    )


def _entities() -> Data:
    """Words and IOB2 tags; names are disjoint between the parts. Generated in a fraction of a second."""
    import numpy as np

    from luthier.data.recipes.entities import KINDS, ROWS, rows
    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    labels = tuple(sorted(["O", *(f"{mark}-{kind}" for mark in "BI" for kind in KINDS)]))
    number = {tag: i for i, tag in enumerate(labels)}

    def part(which: str) -> Split:
        found = rows(which)
        targets = [np.array([number[tag] for tag in tags], dtype=np.int64) for _, tags in found]
        return Split([words for words, _ in found], targets)

    task = Task(kind="tagging", modality="words", labels=labels, input="tokens", label="tags")
    notes = ("The sentences are generated; the names that kinds share are others in train and in test rows",)
    train, validation, test = (part(which) for which in ROWS)
    return Data(train, validation, test, task, PREFIX + "entities", notes)


def _divided(
    labelled: Sequence[tuple[Any, str]], content: Callable[[Any], bytes]
) -> list[tuple[Any, str, str]]:
    """(input, label, split) of every row: 70 % train, 10 % validation, 20 % test of each class.

    A hash of the content decides, and orders the rows: the first N are a random N. Equal inputs are one row.
    """
    digests = {hashlib.sha256(content(x)).hexdigest(): (x, y) for x, y in labelled}
    classes: dict[str, list[str]] = defaultdict(list)
    for digest in sorted(digests):
        classes[digests[digest][1]].append(digest)
    split: dict[str, str] = {}
    for members in classes.values():
        test, validation = max(1, round(0.2 * len(members))), max(1, round(0.1 * len(members)))
        for i, digest in enumerate(members):
            split[digest] = "test" if i < test else "validation" if i < test + validation else "train"
    # Ordered by a second hash: within a class the first one already decided the split.
    order = sorted(digests, key=lambda digest: hashlib.sha256(digest.encode()).hexdigest())
    return [(*digests[digest], split[digest]) for digest in order]


def _classification(
    name: str,
    rows: Sequence[tuple[Any, str, str]],
    *,
    input: str,
    label: str,
    modality: str = "text",
    notes: tuple[str, ...] = (),
) -> Data:
    import numpy as np

    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    labels = tuple(sorted({y for _, y, _ in rows}))
    number = {y: i for i, y in enumerate(labels)}

    def part(which: str) -> Split:
        inputs: Any = [x for x, _, split in rows if split == which]
        targets = np.array([number[y] for _, y, split in rows if split == which], dtype=np.int64)
        return Split(np.stack(inputs) if modality == "image" else inputs, targets)

    task = Task.model_validate(
        {
            "kind": "classification",
            "modality": modality,
            "labels": labels,
            "input": input,
            "label": label,
            "metric": "accuracy",
        }
    )
    return Data(part("train"), part("validation"), part("test"), task, PREFIX + name, notes)
