"""A knowledge base as sentences: facts to memorise with one value masked, questions about them, and pairs that differ in one value (S009).

fact       entity, slot, value: "Curry Garden", "food", "indian"
atomic     one slot a sentence                                                   "The food of Curry Garden is indian."
composite  all slots of an entity, one after the other
masked     the same with one value replaced by a mark; the answer is the whole fact
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.data.write import plain, quote
from luthier.errors import DataError, OptionError

MASK = "<extra_id_0>"
"""What stands for a masked value, as T5 knows it."""
SENTENCE = "The {slot} of {entity} is {value}."
FORMS = ("atomic", "composite")
COLUMNS = ("entity", "slot", "value")


@dataclass(frozen=True)
class Fact:
    """One entry of a knowledge base."""

    entity: str
    slot: str
    value: str


@dataclass(frozen=True)
class MaskedFact:
    """One row to memorise: the fact, or all facts of its entity, with its value masked; and what stood there."""

    input: str
    target: str
    form: str
    fact: Fact


@dataclass(frozen=True)
class Pair:
    """Two responses to one context that differ in one value; `right` is what the knowledge base says."""

    context: str
    right: str
    wrong: str


def read_facts(source: Any, entity: str | None = None) -> list[Fact]:
    """The facts of a table (CSV, JSON lines, ...): columns entity, slot and value, or one row an entity and one column a slot.

    entity: in the second form, the column that names the entity. Empty values are left out, and several values of one slot are told
    together. DataError for other columns, or where nothing is left.
    """
    from luthier.data.sources import find
    from luthier.data.tables import listed

    table = next(iter(find(source, None, None, alone=False).parts.values()))
    columns = table.columns
    if entity is None and not set(COLUMNS) <= set(columns):
        raise DataError(
            f"{plain(table.name)} has no columns {', '.join(COLUMNS)}, but {listed(columns)}. Name the column of its entities: --entity NAME."
        )
    if entity is not None and entity not in columns:
        raise DataError(f"{plain(table.name)} has no column {quote(entity)}. Columns: {listed(columns)}.")
    if entity is None:
        rows = zip(*(columns[name] for name in COLUMNS), strict=True)
    else:
        slots = [name for name in columns if name != entity]
        rows = ((who, slot, columns[slot][i]) for i, who in enumerate(columns[entity]) for slot in slots)  # type: ignore[assignment]
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        who, slot, value = (_text(table.name, x) for x in row)
        if who and slot and value:
            found.setdefault((who, slot), {})[value] = None
    if not found:
        raise DataError(
            f"{plain(table.name)} holds no fact: rows of an entity, a slot and a value are needed."
        )
    return [Fact(who, slot, " and ".join(values)) for (who, slot), values in found.items()]


def _text(name: str, value: Any) -> str:
    """A cell as text on one line; nothing where it is empty. DataError for what is neither text nor a number."""
    if not isinstance(value, str | int | float | np.generic | None):
        raise DataError(f"{plain(name)} holds a {type(value).__name__} where a text or a number is expected.")
    missing = value is None or value != value
    return "" if missing else " ".join(str(value).split())


def filled(sentence: str, fact: Fact, value: str | None = None) -> str:
    """A sentence about a fact, with another value if one is given."""
    said = fact.value if value is None else value
    return sentence.format(entity=fact.entity, slot=fact.slot, value=said)


@dataclass(frozen=True)
class Wording:
    """How facts are told: a sentence for every slot, and others for some of them, with {entity}, {slot} and {value}."""

    sentence: str = SENTENCE
    own: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for text in (self.sentence, *(self.own or {}).values()):
            check_sentence(text, ("entity", "value"))

    def tell(self, fact: Fact, value: str | None = None) -> str:
        """The fact as a sentence, with another value if one is given."""
        return filled((self.own or {}).get(fact.slot, self.sentence), fact, value)


def check_sentence(text: str, needed: Sequence[str]) -> None:
    """OptionError for a sentence that is not text with {entity}, {slot} and {value}, or lacks one that is needed."""
    try:
        fields = [
            (name, spec, how) for _, name, spec, how in string.Formatter().parse(text) if name is not None
        ]
    except ValueError as error:
        raise OptionError(f"The sentence {text[:80]!r} is malformed: {error}.") from None
    names = [name for name, _, _ in fields]
    odd = [name for name, spec, how in fields if name not in COLUMNS or spec or how]
    lacking = [name for name in needed if name not in names]
    if odd or lacking:
        what = f"has {{{odd[0]}}}" if odd else f"lacks {{{lacking[0]}}}"
        raise OptionError(
            f"The sentence {text[:80]!r} {what}: give text with {', '.join('{' + n + '}' for n in COLUMNS)}."
        )


def masked_facts(
    facts: Sequence[Fact],
    wording: Wording | None = None,
    *,
    forms: Sequence[str] = FORMS,
    mask: str = MASK,
) -> list[MaskedFact]:
    """Every fact with its value masked, alone (atomic) and among all facts of its entity (composite).

    An entity of one fact has no composite one. OptionError for an unknown form.
    """
    if odd := [form for form in forms if form not in FORMS] or ([] if forms else [""]):
        raise OptionError(f"No form {odd[0]!r} of a fact. There are: {', '.join(FORMS)}.")
    wording, of = wording or Wording(), by_entity(facts)
    made = []
    for fact in facts:
        mine = of[fact.entity]
        for form in forms:
            told = [fact] if form == "atomic" else mine
            if form == "composite" and len(mine) < 2:
                continue
            hidden = " ".join(wording.tell(f, mask if f == fact else None) for f in told)
            made.append(MaskedFact(hidden, " ".join(map(wording.tell, told)), form, fact))
    return made


def by_entity(facts: Sequence[Fact]) -> dict[str, list[Fact]]:
    """The facts of each entity."""
    found: dict[str, list[Fact]] = {}
    for fact in facts:
        found.setdefault(fact.entity, []).append(fact)
    return found


def contrasted(facts: Sequence[Fact], question: str, answer: str, *, seed: int = 0) -> list[Pair]:
    """For facts a question, its answer, and the answer with a false value of the same slot.

    Facts of a slot are drawn in couples of different values, and each takes the other's for the false one: a model that knows only
    which values are frequent is right in half of the pairs. Facts without a partner are left out; DataError where none has one.
    question, answer: texts with {entity}, {slot} and {value}; the answer holds {value}, the question does not.
    """
    check_sentence(question, ("entity",))
    check_sentence(answer, ("value",))
    if "{value}" in question:
        raise OptionError(f"The question {question[:80]!r} says {{value}}, which is asked for.")
    of: dict[str, list[Fact]] = {}
    for fact in facts:
        of.setdefault(fact.slot, []).append(fact)
    rng, false = random.Random(seed), {}
    for several in of.values():
        for one, other in couples(several, rng):
            false[one], false[other] = other.value, one.value
    if not false:
        raise DataError("Every slot has one value only: there is no false one to tell it from.")
    return [
        Pair(filled(question, f), filled(answer, f), filled(answer, f, false[f])) for f in facts if f in false
    ]


def couples(facts: Sequence[Fact], rng: random.Random) -> list[tuple[Fact, Fact]]:
    """As many couples of facts of different values as there are, drawn; no fact is in two."""
    of: dict[str, list[Fact]] = {}
    for fact in rng.sample(list(facts), len(facts)):
        of.setdefault(fact.value, []).append(fact)
    largest, *others = sorted(of.values(), key=len, reverse=True)
    rest = [fact for several in others for fact in several]
    if len(largest) >= len(rest):  # one value for most: it is in every couple
        return list(zip(largest, rest, strict=False))
    line = largest + rest  # of one value at most half, side by side: half a line apart they differ
    return list(zip(line, line[len(line) // 2 :], strict=False))[: len(line) // 2]
