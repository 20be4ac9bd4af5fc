"""The rows of the catalogue: read strictly, listed, filtered and searched by words, without torch."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from luthier.errors import OptionError

Kind = Literal["method", "study", "system", "benchmark", "survey", "dataset"]
Room = Literal[
    "prompts", "weights", "frugal", "together", "senses", "signals",
    "choose", "reinforce", "lifelong", "clients", "words", "fields",
]  # fmt: skip
State = Literal["works", "partial", "absent", "guide"]
Name = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
Text = Field(min_length=1)


class Row(BaseModel):
    """One paper, in the words of rows.jsonl."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(pattern=r"^S\d{3}$")
    title: str = Text
    system: str
    """The name of what the paper proposes; empty where it proposes nothing that has a name."""
    kind: Kind
    family: str = Name
    also: tuple[str, ...]
    """Further families that it belongs to."""
    modality: tuple[str, ...]
    mechanism: str = Text
    product: str = Text
    """What a user gets."""
    needs: str
    claim: str
    """What the paper reports; empty where the abstract claims nothing that can be measured."""
    check: str = Text
    """The statement, with thresholds, that was proposed to be tested here."""
    effort: Literal["S", "M", "L", "XL"]
    runnable: Literal["yes", "scaled", "paper-only"]
    code: str
    """The public code, as owner/name; empty where none is known."""
    room: Room
    pages: tuple[str, ...]

    @property
    def delivery(self) -> Delivery:
        """Whether and by what Luthier delivers this row."""
        return deliveries().get(self.id, ABSENT)

    @property
    def status(self) -> State:
        return self.delivery.status

    @property
    def entry(self) -> str | None:
        """The method or command that delivers it."""
        return self.delivery.entry

    def record(self) -> dict[str, Any]:
        """All of the row as JSON.

        `check` is the stored check that `luthier check` runs, or null; `statement` is the proposed one in
        words, which rows.jsonl calls check.
        """
        plain = self.model_dump(mode="json")
        statement = plain.pop("check")
        first = {k: plain.pop(k) for k in ("id", "title", "system")}
        return {**first, **self.delivery.model_dump(), **plain, "statement": statement}


class Delivery(BaseModel):
    """What status.json says of a row.

    works: a user runs `entry`, and a stored check holds. partial: `entry` runs, but something of the row, or
    its check, is missing or does not hold; of a row that is measured `cause` says why. guide: `entry` is a
    page or command that says how to do it. absent: not yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    status: State
    entry: str | None = None
    check: str | None = None
    cause: str = ""


ABSENT = Delivery(status="absent")
STATES: tuple[str, ...] = get_args(State)
ROOMS: tuple[str, ...] = get_args(Room)
KINDS: tuple[str, ...] = get_args(Kind)


@cache
def _by_id() -> dict[str, Row]:
    text = files("luthier.papers").joinpath("rows.jsonl").read_text(encoding="utf-8")
    read = [Row.model_validate_json(line) for line in text.splitlines()]
    return {r.id: r for r in sorted(read, key=lambda r: r.id)}


@cache
def deliveries() -> dict[str, Delivery]:
    """Row id -> what status.json says; rows that it does not name are absent."""
    text = files("luthier.papers").joinpath("status.json").read_text(encoding="utf-8")
    return {key: Delivery.model_validate(value) for key, value in json.loads(text).items()}


def rows() -> list[Row]:
    """All rows, by id."""
    return list(_by_id().values())


def row(id: str) -> Row:
    """The row of an id such as S282, whatever its case. Raises OptionError for an unknown one."""
    found = _by_id().get(id.strip().upper())
    if found is None:
        near = difflib.get_close_matches(id.strip().upper(), _by_id(), n=3)
        raise OptionError(
            f"No paper has the id {id!r}. Ids run from {min(_by_id())} to {max(_by_id())}"
            f"{'; near: ' + ', '.join(near) if near else ''}. Search by words: luthier papers WORDS"
        )
    return found


def choices() -> dict[str, list[str]]:
    """The values that each filter of `find` takes, in their order."""
    return {
        "room": list(ROOMS),
        "family": sorted({r.family for r in rows()}),
        "kind": list(KINDS),
        "modality": sorted({m for r in rows() for m in r.modality}),
        "status": list(STATES),
    }


def find(
    query: str = "",
    *,
    room: str | None = None,
    family: str | None = None,
    kind: str | None = None,
    modality: str | None = None,
    status: str | None = None,
) -> list[Row]:
    """Rows that pass every filter and hold every word of `query`, best first; without a query by id.

    A word matches the beginning of a word of the id, title, system, mechanism or claim, whatever its case and
    accents; one of two letters or fewer must be a whole word. What has a hyphen also matches without it.
    `family` is the row's main family. Raises OptionError for a filter value that no row can have.
    """
    kept = filtered(room=room, family=family, kind=kind, modality=modality, status=status)
    words = _folded(query).split()
    if not words:
        return kept
    scored = [(_score(words, r), r) for r in kept]
    return [r for s, r in sorted(scored, key=lambda pair: (-pair[0], pair[1].id)) if s > 0]


def filtered(**wanted: str | None) -> list[Row]:
    """The rows that pass every filter given: room, family, kind, modality, status."""
    kept = rows()
    for field, value in wanted.items():
        if value is None:
            continue
        known = choices()[field]
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"No paper has the {field} {value!r}.{hint} There are: {', '.join(known)}.")
        kept = [r for r in kept if value == (v := getattr(r, field)) or (isinstance(v, tuple) and value in v)]
    return kept


FIELDS: dict[str, float] = {"id": 12, "system": 8, "title": 4, "claim": 1.5, "mechanism": 1}
"""What a word counts in each field that is searched."""


def _score(words: list[str], r: Row) -> float:
    """How well a row answers; 0 where it lacks a word. The row whose system bears the name comes first."""
    index = _index()[r.id]
    asked, named = (re.findall(r"\w+", text) for text in (" ".join(words), _folded(r.system)))
    total = 40.0 if asked == named else 0.0
    for word in words:
        parts = [p for p in (_squashed(word), *re.findall(r"\w+", word)) if p]
        if not parts:
            continue
        best = 0.0
        for field, weight in FIELDS.items():
            whole = _match(parts[0], index[field])
            apart = min((_match(p, index[field]) for p in parts[1:]), default=0.0)
            best += weight * max(whole, apart)
        if best == 0:
            return 0.0
        total += best
    return total


def _match(word: str, tokens: dict[str, int]) -> float:
    """How well a word is met: by a whole word, better by several, or by the beginning of one."""
    if word in tokens:
        return 1 + 0.1 * min(tokens[word] - 1, 5)
    return 0.6 if len(word) > 2 and any(t.startswith(word) for t in tokens) else 0.0


@cache
def _index() -> dict[str, dict[str, dict[str, int]]]:
    return {r.id: {field: _tokens(getattr(r, field)) for field in FIELDS} for r in rows()}


def _tokens(text: str) -> dict[str, int]:
    """Words and their counts; what has no blank is one word too: `P-Tuning` is p, tuning, ptuning."""
    counts: dict[str, int] = {}
    for chunk in _folded(text).split():
        for token in {_squashed(chunk), *re.findall(r"\w+", chunk)}:
            counts[token] = counts.get(token, 0) + 1
    return counts


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def _squashed(text: str) -> str:
    return "".join(re.findall(r"\w+", text))
