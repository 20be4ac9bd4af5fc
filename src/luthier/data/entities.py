"""Entities in sequences of tags, and the scores of taggings.

An entity is a run of words of one type, as CoNLL's evaluation script and seqeval's default mode read tags: B- and S-
begin one; I- or E- begins one too after O, after E- or S-, at the start, and where its type is another than that of the
word before. So a stray I- counts as an entity; the strict mode of seqeval would not count it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.errors import DataError

_TAG = re.compile(r"O|[BIES](-.+)?", re.DOTALL)

Entity = tuple[str, int, int]
"""(type, first word, word behind the last)."""


def marks_entities(labels: Sequence[str]) -> bool:
    """Whether tags mark entities (IOB1, IOB2, IOBES): each is O, or B, I, E, S with a type or without."""
    return any(tag != "O" for tag in labels) and all(_TAG.fullmatch(tag) for tag in labels)


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sequence, from the left."""
    found: list[Entity] = []
    kind, start, before = None, 0, "O"  # the entity that is open: its type, its first word, the mark before
    for at, tag in enumerate([*tags, "O"]):
        mark, _, of = tag.partition("-")
        begins = mark != "O" and (mark in "BS" or before in "OES" or of != kind)
        if kind is not None and (begins or mark == "O"):
            found.append((kind, start, at))
            kind = None
        if begins:
            kind, start = of, at
        before = mark
    return found


def entity_counts(targets: Sequence[str], said: Sequence[str]) -> tuple[int, int]:
    """(entities found, entities among targets plus entities among what was said) of one sequence."""
    right, given = set(entities(targets)), set(entities(said))
    return len(right & given), len(right) + len(given)


def tagging_scores(
    labels: Sequence[str], targets: Sequence[Any], predictions: Sequence[Any]
) -> dict[str, float]:
    """entity_f1 (micro, over the entities of all rows; of tags that mark entities only), accuracy and macro_f1 (both over
    words; macro_f1 over the tags that occur).

    targets: (words,) tag indices of each row. predictions: the same, or probabilities (words, tags).
    """
    chosen = [chosen_tags(given) for given in predictions]
    for row, (right, given) in enumerate(zip(targets, chosen), 1):
        if len(right) != len(given):
            raise DataError(
                f"Row {row} has {len(right)} words and {len(given)} predicted tags: give one a word"
            )
    from sklearn.metrics import accuracy_score, f1_score

    right, given = np.concatenate(list(targets)), np.concatenate(chosen)
    if given.min() < 0 or given.max() >= len(labels):
        raise DataError(f"Predicted tags are {given.min()} to {given.max()}; there are {len(labels)} tags")
    found = {}
    if marks_entities(labels):
        name = lambda row: [labels[int(at)] for at in row]
        counts = np.sum([entity_counts(name(a), name(b)) for a, b in zip(targets, chosen)], axis=0)
        found["entity_f1"] = float(2 * counts[0] / counts[1]) if counts[1] else 0.0
    found["accuracy"] = float(accuracy_score(right, given))
    found["macro_f1"] = float(f1_score(right, given, average="macro", zero_division=0.0))
    return found


def chosen_tags(given: Any) -> np.ndarray:
    """(words,) int64: the likeliest tag of each word, from probabilities (words, tags) or from indices."""
    values = np.asarray(given)
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise DataError(
            "Predictions hold NaN, infinity or something else than numbers: the model has diverged"
        )
    return (values.argmax(-1) if values.ndim == 2 else values).astype(np.int64)


def most_frequent_tag(labels: Sequence[str], targets: Sequence[Any]) -> str:
    """What a word is called of which nothing is known: O where tags mark entities, else the most frequent tag."""
    if "O" in labels and marks_entities(labels):
        return "O"
    counts = Counter(int(tag) for row in targets for tag in row)
    return labels[min(counts, key=lambda tag: (-counts[tag], tag))]
