"""Plain texts as rows of text to text: what is learned from texts that nobody labelled (S287: to keep languages alive in tuning).

spans     runs of words are taken out; the answer names them behind their marks (Raffel et al. 2020, span corruption)
continue  the first part is given, the rest is the answer (language modelling)
order     the words are shuffled; the answer is the text
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.data.write import plain
from luthier.errors import DataError, OptionError

MARK = "<extra_id_{}>"
"""What stands for a run of words, as T5 and mT5 know it."""
TEXTS = ("predicted", "prediction", "text", "target", "input")
"""Columns that hold a table's texts, where none is named."""
CORRUPTED, SPAN = 0.3, 2
"""The share of words that is taken out, and how many at a time on average. Short texts need more than T5's 15 %."""


Pair = tuple[list[str], list[str]]
"""An input and its answer, as pieces."""


def spans(words: list[str], rng: random.Random) -> Pair:
    """A text with runs of words replaced by marks, and the runs behind their marks."""
    count = max(1, round(len(words) * CORRUPTED / SPAN))
    starts = sorted(rng.sample(range(len(words)), min(count, len(words))))
    source: list[str] = []
    target: list[str] = []
    at = 0
    for i, start in enumerate(starts):
        limit = starts[i + 1] if i + 1 < len(starts) else len(words)
        end = min(start + rng.randint(1, 2 * SPAN - 1), limit)
        mark = MARK.format(i)
        source += [*words[at:start], mark]
        target += [mark, *words[start:end]]
        at = end
    return source + words[at:], target


def continued(words: list[str], rng: random.Random) -> Pair:
    """A text's beginning, a third to two thirds of it, and the rest."""
    cut = rng.randint(max(1, len(words) // 3), max(1, (2 * len(words)) // 3))
    return words[:cut], words[cut:]


def ordered(words: list[str], rng: random.Random) -> Pair:
    """A text's words in any order, and the text."""
    return rng.sample(words, len(words)), words


def written(words: list[str], rng: random.Random) -> Pair:
    """A mark alone, and the text."""
    return [MARK.format(0)], words


MAKE: dict[str, Callable[[list[str], random.Random], Pair]] = {
    "spans": spans,
    "continue": continued,
    "order": ordered,
    "write": written,
}
"""Objective -> function of a text's words."""


def rows_of(
    texts: Sequence[str], objectives: Sequence[str] = tuple(MAKE), *, seed: int | str = 0, first: int = 0
) -> list[tuple[str, str, str]]:
    """[(input, target, objective)]: every text once, by the objectives in turn from the `first` on. Pieces are words, or the characters of a text
    without blanks; a text of one piece is left out.

    OptionError for an unknown objective, DataError where no text is long enough.
    """
    odd = [name for name in objectives if name not in MAKE]
    if odd or not objectives:
        raise OptionError(
            f"No objective {odd[0][:60] if odd else ''!r} for unlabelled texts. There are: {', '.join(MAKE)}."
        )
    rng = random.Random(seed)
    made: list[tuple[str, str, str]] = []
    for text in texts:
        between, words = " ", text.split()
        if len(words) < 2:
            between, words = "", list(text.strip())
        if len(words) < 2:
            continue
        name = objectives[(first + len(made)) % len(objectives)]
        source, target = MAKE[name](words, rng)
        made.append((between.join(source), between.join(target), name))
    if not made:
        raise DataError("No text has two words or more: nothing can be learned from these texts.")
    return made


def read_texts(source: str, column: str | None = None) -> list[str]:
    """The texts of a file: the lines of a .txt, or a column of a table. DataError for a column that is missing or none that is clear."""
    from luthier.data.columns import missing, sort_of
    from luthier.data.sources import find
    from luthier.data.tables import listed, read_bytes

    path = Path(source)
    if path.suffix.lower() == ".txt":
        lines = read_bytes(path).decode("utf-8", "replace").splitlines()
        return [line.strip() for line in lines if line.strip()]
    table = next(iter(find(source, None, None, alone=True).parts.values()))
    names = [column] if column else [n for n in TEXTS if n in table.columns][:1]
    names = names or [n for n, values in table.columns.items() if sort_of(values) == "text"]
    if len(names) != 1:
        raise DataError(
            f"{plain(table.name)}: which column holds the texts? Columns: {listed(table.columns)}."
        )
    if names[0] not in table.columns:
        raise missing(table, names[0], "column")
    return [text.strip() for text in table.columns[names[0]] if isinstance(text, str)]


def mixed(
    data: Any,
    texts: Mapping[str, Sequence[str]],
    *,
    language: str,
    task: str,
    objectives: Sequence[str] = tuple(MAKE),
    share: float = 0.5,
    seed: int = 0,
) -> Any:
    """The data with unlabelled texts among its training rows, and two attributes: the language, and the task or objective.

    language, task: what the data's own rows are told. texts: {language: texts}, each language as often as the others. share: of
    all training rows, those made of texts; texts are used again where there are too few. Validation and test rows stay the data's
    own. DataError for data that is not text to text.
    """
    from dataclasses import replace

    import numpy as np

    from luthier.data.split import Split

    if data.task.kind != "text2text":
        raise DataError(f"Unlabelled texts are mixed into text to text, and {data.name} is {data.task.kind}.")
    if not 0 < share < 1:
        raise OptionError(f"share={share!r}: it is the texts' share of the training rows, between 0 and 1.")
    if not texts:
        raise OptionError("No texts were given: name a language and its texts.")
    own = len(data.train)
    each = max(1, round(own * share / (1 - share) / len(texts)))
    inputs, targets = list(data.train.inputs), list(data.train.targets)
    told = [(language, task)] * own
    for number, (name, several) in enumerate(texts.items(), 1):
        turn = 0
        while left := own + number * each - len(inputs):
            made = rows_of(several, objectives, seed=f"{seed} {name} {turn}", first=turn)
            for source, target, objective in made[:left]:
                inputs.append(source)
                targets.append(target)
                told.append((name, objective))
            turn += 1
    parts: dict[str, Any] = {"train": Split(inputs, targets, np.array(told, dtype=str))}
    for name in ("validation", "test"):
        part = getattr(data, name)
        if part is not None:
            parts[name] = replace(part, attributes=np.array([(language, task)] * len(part), dtype=str))
    posed = data.task.model_copy(update={"attributes": ("language", "task")})
    return replace(data, **parts, task=posed)
