"""Skills that testbeds are taught: generated questions with one right answer, apart into train and held-out.

Every instance is made from a random number generator that is handed in; whether it may be trained on is
decided by the hash of its prompt, so that no prompt is in both parts.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import NamedTuple

from luthier.models.testbeds.words import (
    BAD,
    CITIES,
    DAYS,
    GOOD,
    KIND_OF,
    KINDS,
    NAMES,
    THINGS,
    different,
    made_up,
    word,
)

Fields = tuple[dict[str, str], str]
HELD_OUT_SHARE = 8


class Instance(NamedTuple):
    """What is asked, and the one right answer."""

    prompt: str
    answer: str


def _copy(rng: random.Random) -> Fields:
    x = " ".join(word(rng) for _ in range(rng.randint(2, 6)))
    return {"x": x}, x


def _reverse(rng: random.Random) -> Fields:
    words = different(rng, rng.randint(2, 4))
    return {"x": " ".join(words)}, " ".join(reversed(words))


def _first(rng: random.Random) -> Fields:
    words = different(rng, rng.randint(3, 6))
    return {"x": " ".join(words)}, words[0]


def _last(rng: random.Random) -> Fields:
    words = different(rng, rng.randint(3, 6))
    return {"x": " ".join(words)}, words[-1]


def _sort(rng: random.Random) -> Fields:
    digits = rng.sample(range(10), rng.randint(3, 5))
    return {"x": " ".join(map(str, digits))}, " ".join(map(str, sorted(digits)))


def _add(rng: random.Random) -> Fields:
    a, b = (rng.randrange(10 if rng.random() < 0.3 else 100) for _ in range(2))
    return {"a": str(a), "b": str(b)}, str(a + b)


def _larger(rng: random.Random) -> Fields:
    a, b = rng.sample(range(1, 100), 2)
    return {"a": str(a), "b": str(b)}, str(max(a, b))


def _lookup(rng: random.Random) -> Fields:
    n = rng.randint(2, 5)
    keys, values = rng.sample(NAMES, n), different(rng, n)
    asked = rng.randrange(n)
    return {"x": ", ".join(f"{k}: {v}" for k, v in zip(keys, values)), "k": keys[asked]}, values[asked]


def _answer(rng: random.Random) -> Fields:
    people = rng.sample(NAMES, rng.randint(2, 3))
    cities, things = rng.sample(CITIES, len(people)), rng.sample(THINGS, len(people))
    told = [f"{p} lives in {c}." for p, c in zip(people, cities)]
    told += [f"{p} likes {t}." for p, t in zip(people, things)]
    rng.shuffle(told)
    i = rng.randrange(len(people))
    question, answer = rng.choice(
        [(f"Where does {people[i]} live?", cities[i]), (f"What does {people[i]} like?", things[i])]
    )
    return {"x": " ".join(told), "q": question}, answer


def _tool(rng: random.Random) -> Fields:
    name, values = rng.choice(
        [
            ("weather", [("city", rng.choice(CITIES)), ("day", rng.choice(DAYS))]),
            ("train", [("start", rng.choice(CITIES)), ("goal", rng.choice(CITIES))]),
            ("order", [("item", rng.choice(THINGS)), ("number", str(rng.randint(1, 99)))]),
            ("call", [("person", rng.choice(NAMES)), ("day", rng.choice(DAYS))]),
            ("find", [("word", word(rng))]),
        ]
    )
    rng.shuffle(values)
    said = " and ".join(f"{k} {v}" for k, v in values)
    return {"x": f"{name} with {said}"}, f"{name}({', '.join(f'{k}={v}' for k, v in values)})"


def _count(rng: random.Random) -> Fields:
    k, other = rng.sample(THINGS, 2)
    words = [rng.choice((k, other)) for _ in range(rng.randint(2, 6))]
    return {"k": k, "x": " ".join(words)}, str(words.count(k))


def _kind(rng: random.Random) -> Fields:
    thing = rng.choice(THINGS)
    others = rng.sample([k for k in KINDS if k != KIND_OF[thing]], rng.randint(1, 4))
    choices = [KIND_OF[thing], *others]
    rng.shuffle(choices)
    return {"x": thing, "choices": ", ".join(choices)}, KIND_OF[thing]


SENTENCES = (
    "{p} saw a {x} in {c}.",
    "There is {x} near the house of {p}.",
    "{p} and {q} talk about {x}.",
    "On {d} {p} wants {x} again.",
    "Yesterday {p} asked {q} for {x}.",
    "In {c} they all know {x}.",
)


def sentence(rng: random.Random, x: str) -> str:
    """A sentence about `x`, with names, cities and days that do not matter."""
    p, q = rng.sample(NAMES, 2)
    return rng.choice(SENTENCES).format(x=x, p=p, q=q, c=rng.choice(CITIES), d=rng.choice(DAYS))


def _topic(rng: random.Random) -> Fields:
    fields, answer = _kind(rng)
    return {**fields, "x": sentence(rng, fields["x"])}, answer


OPINIONS = (
    "{p} says that the {x} is {a}.",
    "The {x} in {c} was {a}.",
    "What a {a} {x}!",
    "We had a {a} {x} on {d}.",
    "I think this {x} is really {a}.",
)
VERDICTS = (("good", "bad"), ("positive", "negative"), ("like", "dislike"))


def opinion(rng: random.Random, good: bool) -> str:
    """A sentence that praises or blames a thing."""
    return rng.choice(OPINIONS).format(
        p=rng.choice(NAMES),
        x=rng.choice(THINGS),
        a=rng.choice(GOOD if good else BAD),
        c=rng.choice(CITIES),
        d=rng.choice(DAYS),
    )


def _opinion(rng: random.Random) -> Fields:
    good, verdict = rng.random() < 0.5, rng.choice(VERDICTS)
    choices = list(verdict)
    rng.shuffle(choices)
    return {"x": opinion(rng, good), "choices": ", ".join(choices)}, verdict[0 if good else 1]


def _mentions(rng: random.Random) -> Fields:
    p, (x, y) = rng.choice(NAMES), rng.sample(THINGS, 2)
    yes = rng.random() < 0.5
    return {"x": sentence(rng, x), "k": x if yes else y, "p": p}, "yes" if yes else "no"


def _same(rng: random.Random) -> Fields:
    kind, other = rng.sample(list(KINDS), 2)
    yes = rng.random() < 0.5
    a, b = rng.sample(KINDS[kind], 2)
    return {"a": a, "b": b if yes else rng.choice(KINDS[other])}, "yes" if yes else "no"


def _odd(rng: random.Random) -> Fields:
    kind, other = rng.sample(list(KINDS), 2)
    odd = rng.choice(KINDS[other])
    words = [*rng.sample(KINDS[kind], 3), odd]
    rng.shuffle(words)
    return {"x": " ".join(words)}, odd


def _renamed(rng: random.Random) -> Fields:
    """Kinds get made-up names for this one question."""
    kinds = rng.sample(list(KINDS), rng.randint(2, 3))
    labels = [made_up(rng) for _ in kinds]
    i = rng.randrange(len(kinds))
    text = sentence(rng, rng.choice(KINDS[kinds[i]]))
    return {"x": text, "choices": ", ".join(f"{k} is {v}" for k, v in zip(kinds, labels))}, labels[i]


SKILLS: dict[str, tuple[Callable[[random.Random], Fields], tuple[str, ...]]] = {
    "copy": (_copy, ("copy: {x}", "Repeat these words: {x}", "Say again: {x}")),
    "reverse": (_reverse, ("reverse: {x}", "Turn the order of these words around: {x}", "Backwards: {x}")),
    "first": (_first, ("first: {x}", "Which word comes first? {x}")),
    "last": (_last, ("last: {x}", "Which word comes last? {x}")),
    "sort": (_sort, ("sort: {x}", "Put these digits in order: {x}")),
    "add": (_add, ("add: {a} + {b}", "What is {a} plus {b}?", "{a} + {b} =")),
    "larger": (_larger, ("larger: {a} {b}", "Which number is larger, {a} or {b}?")),
    "lookup": (_lookup, ("lookup: {x}. {k}?", "Table: {x}. Which value has {k}?", "Given {x}. Find {k}.")),
    "answer": (_answer, ("answer: {x} {q}", "Text: {x} Question: {q}", "{q} Read this: {x}")),
    "tool": (_tool, ("tool: {x}", "Write the call for: {x}", "Please use the tool {x}.")),
    "count": (_count, ("count: {k} in {x}", "How often does {k} occur in: {x}?")),
    "kind": (
        _kind,
        ("kind: {x} choices: {choices}", "Is {x} one of these: {choices}?", "{x} is a kind of? {choices}"),
    ),
    "topic": (
        _topic,
        (
            "topic: {x} choices: {choices}",
            "{x} What is this text about? Choices: {choices}.",
            "Choose from {choices}. Text: {x} Answer:",
            "Label the text with one of {choices}: {x}",
        ),
    ),
    "opinion": (
        _opinion,
        (
            "opinion: {x} choices: {choices}",
            "{x} How does the writer feel? Choices: {choices}.",
            "Choose from {choices}. Text: {x} Answer:",
            "Label the text with one of {choices}: {x}",
        ),
    ),
    "mentions": (_mentions, ("mentions: {x} {k}?", "{x} Does the text speak of {k}? Choices: yes, no.")),
    "same": (_same, ("same: {a} {b}", "Are {a} and {b} of the same kind? Choices: yes, no.")),
    "odd": (_odd, ("odd: {x}", "Which of these does not belong? {x}")),
    "renamed": (_renamed, ("renamed: {choices}. {x}", "If {choices}, how is this text labelled? {x}")),
}
"""Name -> what makes its fields and answer, and its wordings."""

DECODER = ("copy", "reverse", "last", "sort", "add", "lookup", "answer", "tool")
"""The skills that decoders are taught, each in its first wording."""


def is_held_out(skill: str, prompt: str) -> bool:
    """Whether an instance is never trained on, by the hash of its prompt."""
    return hashlib.sha256(f"{skill}\0{prompt}".encode()).digest()[0] % HELD_OUT_SHARE == 0


def instance(skill: str, rng: random.Random, *, held_out: bool = False, wordings: int = 1) -> Instance:
    """One instance of a skill from the asked part, in one of its first `wordings` wordings."""
    make, patterns = SKILLS[skill]
    while True:
        fields, answer = make(rng)
        prompt = rng.choice(patterns[:wordings]).format(**fields)
        if is_held_out(skill, prompt) == held_out:
            return Instance(prompt, answer)


def held_out_instances(skill: str, n: int, seed: int = 0, wordings: int = 1) -> list[Instance]:
    """The first `n` different held-out instances of a seed."""
    rng = random.Random(f"{skill} {seed}")
    found: dict[str, Instance] = {}
    while len(found) < n:
        made = instance(skill, rng, held_out=True, wordings=wordings)
        found[made.prompt] = made
    return list(found.values())
