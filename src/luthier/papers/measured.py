"""What a page says of a row's stored check: plain words and numbers, from `results`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Judged:
    """One claim with its figure, in words."""

    id: str
    statement: str
    threshold: str
    figure: str
    spread: str
    """The 95 % interval, in brackets; "" where there is none."""
    holds: bool


@dataclass(frozen=True)
class Measured:
    """A stored check. figure, spread, threshold, claim: of the claim that speaks for it."""

    id: str
    statement: str
    claim: str
    figure: str
    spread: str
    threshold: str
    holds: bool
    fresh: bool
    claims: tuple[Judged, ...]
    seconds: float
    data: str
    against: str
    notes: str
    date: str
    versions: dict[str, str]


def measured(id: str) -> Measured | None:
    """The stored check of a row, judged again from its raw figures; None where nothing is stored.

    Raises FileFormatError for a damaged file.
    """
    from luthier.papers.results import stored

    found = stored(id)
    return None if found is None else of_record(found.record())


def of_record(record: dict[str, Any]) -> Measured:
    """From what `luthier check --json` prints."""
    claims = tuple(
        Judged(
            c["id"],
            c["statement"],
            c["threshold"],
            _figure(c["figure"]),
            _spread(c["low"], c["high"]),
            c["holds"],
        )
        for c in record["claims"]
    )
    head = next(c for c in claims if c.id == record["claim"])
    same = {
        k: record[k] for k in ("id", "statement", "holds", "fresh", "seconds", "data", "against", "notes")
    }
    return Measured(
        claim=head.id,
        figure=head.figure,
        spread=head.spread,
        threshold=head.threshold,
        claims=claims,
        date=record["date"],
        versions=dict(record["versions"]),
        **same,
    )


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _spread(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3g}, {high:.3g}]"
