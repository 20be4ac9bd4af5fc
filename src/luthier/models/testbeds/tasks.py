"""Tasks to adapt a testbed to, none of which it was pretrained on, as `Data`.

    order-a, order-b, order-c   a decoder writes three or four digits in another order; three orders that need the
                                same input, so that learning one disturbs another (`builtin:order-a` ...)
    departments                 a T5 names the department of a shop that a sentence is about: twelve kinds of
                                things, which it knows, under four new names
    verdicts                    a T5 says whether a sentence in new words praises, blames or does neither

Rows are generated from a fixed seed. No prompt is in two parts, and the classes of each part are balanced from
its first rows on, so that `data.limit(train=32)` is a few-shot set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from luthier.models.testbeds.words import BAD, CITIES, DAYS, GOOD, KINDS, NAMES, THINGS

if TYPE_CHECKING:
    from luthier.data.split import Data, Split
    from luthier.data.task import Task

ROWS = {"train": 1200, "validation": 200, "test": 400}


def _rotated(words: list[str]) -> list[str]:
    return [*words[1:], words[0]]


def _outside_in(words: list[str]) -> list[str]:
    return [words[-1], *words[1:-1], words[0]]


def _swapped(words: list[str]) -> list[str]:
    return [words[1], words[0], *words[2:]]


ORDERS: dict[str, Callable[[list[str]], list[str]]] = {
    "order-a": _rotated,
    "order-b": _outside_in,
    "order-c": _swapped,
}
DEPARTMENTS: dict[str, tuple[str, ...]] = {
    "garden": ("animal", "plant", "weather"),
    "kitchen": ("food", "drink"),
    "workshop": ("metal", "vehicle", "furniture"),
    "theatre": ("music", "clothing", "colour"),
}
NEAR = (
    "{p} asks if we still have the {x}.",
    "A letter from {c}: where is my {x}?",
    "Please keep one {x} for {p} until {d}.",
    "The {x} did not come on {d}.",
    "Can {p} bring back the {x}?",
)
JUDGED = (
    "{p} called it {a}.",
    "My {x} from {c} turned out {a}.",
    "Never have we seen such {a} {x}.",
    "{a}, says {p} about the {x}.",
    "By {d} the {x} had become {a}.",
)
NEUTRAL = (
    "{p} called it {k}.",
    "My {x} from {c} turned out {k}.",
    "Never have we seen such {k} {x}.",
    "{k}, says {p} about the {x}.",
    "By {d} the {x} had become {k}.",
)
VERDICTS = ("praise", "blame", "neither")


def data(name: str) -> Data:
    """The task called `name`. Raises DataError for an unknown one."""
    from luthier.errors import DataError

    if name not in TASKS:
        raise DataError(f"No task is called {name[:60]!r}. There are: {', '.join(TASKS)}")
    return TASKS[name]()


def _order(name: str) -> Data:
    from luthier.data.task import Task

    rng = random.Random(name)
    rows: dict[str, str] = {}
    while len(rows) < sum(ROWS.values()):
        words = list(map(str, rng.sample(range(10), rng.randint(3, 4))))
        rows[f"{name.replace('-', ' ')}: {' '.join(words)}"] = " ".join(ORDERS[name](words))
    task = Task(kind="text2text", modality="text", input="prompt", label="answer", metric="exact_match")
    return _data(list(rows.items()), task, name)


def _departments(rng: random.Random, label: int) -> str:
    kind = rng.choice(list(DEPARTMENTS.values())[label])
    return _sentence(rng, rng.choice(NEAR), rng.choice(KINDS[kind]))


def _verdicts(rng: random.Random, label: int) -> str:
    pattern = rng.choice(NEUTRAL if label == 2 else JUDGED)
    return _sentence(rng, pattern, rng.choice(THINGS), rng.choice(GOOD if label == 0 else BAD))


def _sentence(rng: random.Random, pattern: str, x: str, a: str = "") -> str:
    made = pattern.format(
        x=x, a=a, p=rng.choice(NAMES), c=rng.choice(CITIES), d=rng.choice(DAYS), k=rng.choice(KINDS["colour"])
    )
    return made[0].upper() + made[1:]


def _classified(
    name: str, labels: tuple[str, ...], question: str, make: Callable[[random.Random, int], str]
) -> Data:
    from luthier.data.task import Task

    rng = random.Random(name)
    rows: dict[str, int] = {}
    while len(rows) < sum(ROWS.values()):
        label = len(rows) % len(labels)
        text = question.format(make(rng, label))
        if text not in rows:
            rows[text] = label
    task = Task(
        kind="classification", modality="text", labels=labels, input="text", label="label", metric="accuracy"
    )
    return _data(list(rows.items()), task, name)


def _data(rows: Sequence[tuple[str, str | int]], task: Task, name: str) -> Data:
    """The first rows train, the next validate, the last test."""
    from luthier.data.split import Data, Split

    parts: dict[str, Split] = {}
    begin = 0
    for part, number in ROWS.items():
        inputs, targets = zip(*rows[begin : begin + number])
        whole = np.array(targets, dtype=np.int64) if task.kind == "classification" else list(targets)
        parts[part] = Split(list(inputs), whole)
        begin += number
    return Data(parts["train"], parts["validation"], parts["test"], task, f"builtin:{name}")


def as_text2text(data: Data) -> Data:
    """A classification as a task of text to text: the target is the label's name."""
    from luthier.data.task import Task

    names = data.task.labels

    def named(part: Split | None) -> Split | None:
        if part is None or part.targets is None:
            return part
        return replace(part, targets=[names[int(i)] for i in part.targets])

    task = Task(
        kind="text2text",
        modality=data.task.modality,
        input=data.task.input,
        label=data.task.label,
        metric="exact_match",
    )
    train = named(data.train)
    assert train is not None
    return replace(data, train=train, validation=named(data.validation), test=named(data.test), task=task)


TASKS: dict[str, Callable[[], Data]] = {
    **{name: partial(_order, name) for name in ORDERS},
    "departments": partial(
        _classified,
        "departments",
        tuple(DEPARTMENTS),
        "{} Which department? Choices: " + ", ".join(DEPARTMENTS) + ".",
        _departments,
    ),
    "verdicts": partial(_classified, "verdicts", VERDICTS, "{}", _verdicts),
}
