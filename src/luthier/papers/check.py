"""A check: what a paper's row claims, and the code that measures it. Declaring one loads neither torch nor data.

CHECK = Check("S294", covers=("luthier.methods.scaling.ia3",), data="...", claims=(AtMost("identity", "...", 1e-6),))

@CHECK.measures("identity", cheap=True)
def start(run):
    run.record("identity", value)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from luthier.errors import OptionError
from luthier.papers.claims import Claim

FOLDER = "luthier.papers.checks"


@dataclass(frozen=True)
class Measure:
    """A function that records figures for some claims. cheap: it takes seconds, and the test run repeats it at times."""

    claims: tuple[str, ...]
    function: Callable[[Any], None]
    cheap: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__


@dataclass
class Check:
    """The check of one row.

    covers: modules whose code the figures hang on, and testbeds (testbed:NAME); their digest, with this file's, says whether a
    stored result is fresh.
    against: the baselines and controls, in words. data: what is measured on, in words. notes: what differs from the
    statement in the catalogue, and what a reader must know of the figures. whole: False where a part of that statement is not measured,
    which the notes name: the row is then partial even if all that is measured holds.
    """

    id: str
    statement: str
    claims: tuple[Claim, ...]
    covers: tuple[str, ...]
    data: str
    against: str
    minutes: float
    """On two cores, about."""
    notes: str = ""
    whole: bool = True
    measured: list[Measure] = field(default_factory=list)

    def measures(
        self, *claims: str, cheap: bool = False
    ) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        """Declare what measures these claims. Raises OptionError for an unknown claim, or one that has a measure."""
        taken = {c for m in self.measured for c in m.claims}
        for claim in claims:
            self.claim(claim)
            if claim in taken:
                raise OptionError(f"Two functions of the check {self.id} measure {claim!r}. Let one do it.")
        if not claims:
            raise OptionError(f"A function of the check {self.id} names no claim that it measures.")

        def keep(function: Callable[[Any], None]) -> Callable[[Any], None]:
            self.measured.append(Measure(claims, function, cheap))
            return function

        return keep

    def claim(self, id: str) -> Claim:
        """The claim of a name. Raises OptionError for an unknown one."""
        for claim in self.claims:
            if claim.id == id:
                return claim
        raise OptionError(
            f"The check {self.id} makes no claim {id!r}. It claims: {', '.join(c.id for c in self.claims)}."
        )


def ids() -> list[str]:
    """The rows that have a check, sorted: the names of the files."""
    found = (p.name for p in files(FOLDER).iterdir())
    return sorted(n[:-3].upper() for n in found if n.startswith("s") and n.endswith(".py"))


@cache
def check(id: str) -> Check:
    """The check of a row. Raises OptionError for a row without one."""
    wanted = id.strip().upper()
    if wanted not in ids():
        from luthier.papers.catalogue import row

        row(wanted)  # names the nearest ids where there is no such row
        raise OptionError(f"{wanted} has no check yet. There are checks of: {', '.join(ids())}.")
    made: Check = import_module(f"{FOLDER}.{wanted.lower()}").CHECK
    if made.id != wanted:
        raise OptionError(
            f"The file {wanted.lower()}.py declares the check {made.id!r}. Name it after its row."
        )
    missing = [c.id for c in made.claims if not any(c.id in m.claims for m in made.measured)]
    if missing:
        raise OptionError(f"Nothing in the check {wanted} measures {', '.join(missing)}.")
    return made
