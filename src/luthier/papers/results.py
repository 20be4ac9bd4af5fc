"""Stored results of checks: raw figures per arm and seed in JSON. Whether a check holds is worked out from them each time."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.errors import FileFormatError, OptionError
from luthier.papers import digest
from luthier.papers.check import FOLDER, Check, check, ids
from luthier.papers.claims import Beats, Claim, Verdict

FORMAT = 1
TESTBED = "testbed:"
LARGEST = 4_000_000
"""Bytes of a file of results that are still read."""


class Record(BaseModel):
    """One raw figure. arm: "" where nothing is compared. about: what helps to read it (a rate, a count)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    claim: str
    arm: str = ""
    seed: int = 0
    value: float
    about: dict[str, Any] = Field(default_factory=dict)


class Stored(BaseModel):
    """A file of results/."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int
    id: str
    records: tuple[Record, ...]
    trials: tuple[dict[str, Any], ...] = ()
    """What was tried on validation to choose each arm's learning rate."""
    seconds: float
    digest: str
    versions: dict[str, str]
    machine: dict[str, Any]
    date: str = Field(pattern=r"^\d{4}-\d\d-\d\d$")


@dataclass(frozen=True)
class Result:
    """A check with the figures that were recorded for it, judged."""

    check: Check
    stored: Stored

    @property
    def verdicts(self) -> list[tuple[Claim, Verdict]]:
        plain = [r.model_dump() for r in self.stored.records]
        return [(c, c.judge(plain)) for c in self.check.claims]

    @property
    def holds(self) -> bool:
        return all(v.holds for _, v in self.verdicts)

    @property
    def fresh(self) -> bool:
        """Whether the code of the check and of what it covers is still what was measured."""
        return self.stored.digest == fingerprint(self.check)

    @property
    def headline(self) -> tuple[Claim, Verdict]:
        """The claim that speaks for the check: the first that does not hold, else its first."""
        return next(((c, v) for c, v in self.verdicts if not v.holds), self.verdicts[0])

    @property
    def figure(self) -> str:
        """The headline's figure in words."""
        claim, verdict = self.headline
        return f"{claim.id}: {in_words(claim, verdict)}"

    def record(self) -> dict[str, Any]:
        """All of it as JSON: one object per check, as `luthier check --json` prints it."""
        claim, verdict = self.headline
        return {
            "id": self.check.id,
            "statement": self.check.statement,
            "claim": claim.id,
            "figure": verdict.figure,
            "threshold": verdict.threshold,
            "spread": None if verdict.low is None else [verdict.low, verdict.high],
            "seconds": self.stored.seconds,
            "holds": self.holds,
            "fresh": self.fresh,
            "data": self.check.data,
            "against": self.check.against,
            "notes": self.check.notes,
            "claims": [
                {
                    "id": c.id,
                    "statement": c.statement,
                    "kind": type(c).__name__.lower(),
                    "threshold": v.threshold,
                    "figure": v.figure,
                    "low": v.low,
                    "high": v.high,
                    "arms": dict(v.arms) if v.arms else {},
                    "holds": v.holds,
                }
                for c, v in self.verdicts
            ],
            "records": [r.model_dump() for r in self.stored.records],
            "trials": list(self.stored.trials),
            "versions": self.stored.versions,
            "machine": self.stored.machine,
            "date": self.stored.date,
        }


def in_words(claim: Claim, verdict: Verdict) -> str:
    """`+0.041 [0.012, 0.070] (asked: lora - probe above 0)`."""
    if verdict.figure is None:
        return f"not measured (asked: {verdict.threshold})"
    sign = "+" if isinstance(claim, Beats) else ""
    spread = "" if verdict.low is None else f" [{verdict.low:.3g}, {verdict.high:.3g}]"
    return f"{verdict.figure:{sign}.4g}{spread} (asked: {verdict.threshold})"


def fingerprint(made: Check) -> str:
    """The digest of a check's own file, of the modules that it covers, and of the testbeds' weights (testbed:NAME)."""
    modules = [c for c in made.covers if not c.startswith(TESTBED)]
    code = digest.digest((f"{FOLDER}.{made.id.lower()}", *modules))
    weights = [_weights(c.removeprefix(TESTBED)) for c in sorted(made.covers) if c.startswith(TESTBED)]
    return hashlib.sha256(" ".join([code, *weights]).encode()).hexdigest()


def _weights(name: str) -> str:
    """What the card of a testbed says of its weights. Raises OptionError where there is no such testbed."""
    card = Path(str(files("luthier.models"))) / "testbeds" / "weights" / name / "card.json"
    if not card.is_file():
        raise OptionError(
            f"There is no testbed {name!r} for a check to cover. Build it: luthier testbed build {name}"
        )
    return str(json.loads(card.read_text(encoding="utf-8"))["sha256"])


def folder() -> Path:
    """Where results are kept: in the package, so that they travel with it."""
    return Path(str(files("luthier.papers"))) / "results"


@cache
def stored(id: str) -> Result | None:
    """The stored result of a row's check, or None. Raises FileFormatError for a file that is damaged."""
    path = folder() / f"{id.strip().upper()}.json"
    if id.strip().upper() not in ids() or not path.is_file():
        return None
    return Result(check(id), read(path))


def read(path: Path) -> Stored:
    """A file of results, read strictly. Raises FileFormatError, naming the file and what is wrong in it."""
    if path.stat().st_size > LARGEST:
        raise FileFormatError(f"{path.name} has more than {LARGEST:,} bytes: not a result of a check.")
    try:
        # Strict JSON: tuples come as lists, which pydantic takes from JSON text but not from Python objects.
        found = Stored.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()
        raise FileFormatError(
            f"{path.name} is damaged ({' '.join(first[1:3])}). Run the check again: luthier check {path.stem} --store"
        ) from None
    if found.format != FORMAT or found.id != path.stem:
        raise FileFormatError(
            f"{path.name} says it is {found.id} in format {found.format}; {path.stem} in format {FORMAT} belongs there."
        )
    return found


def store(result: Result) -> Path:
    """Write a result to the package. Returns the file."""
    from luthier.compare.folder import write_text

    path = folder() / f"{result.check.id}.json"
    kept = result.stored.model_dump()
    rows = {k: [json.dumps(r, allow_nan=True) for r in kept.pop(k)] for k in ("records", "trials")}
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in kept.items()]
    lines += [f" {json.dumps(k)}: [" + ",".join(f"\n  {r}" for r in v) + "]" for k, v in rows.items()]
    path.parent.mkdir(exist_ok=True)
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    stored.cache_clear()
    return path
