"""python -m tests.conformance.table: writes luthier/methods/conformance.json, what does not apply to whom and why.

{method: {architecture: {property: reason}}}, with all properties by name. Every test of the suite compares its own cell with it, so
that it is fresh wherever the suite passes. `make methods` then counts it into the index.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import luthier
from luthier.host.applicable import Ability, Reason
from tests.conformance.cells import ARCHITECTURES, Cell, parts
from tests.conformance.properties import PROPERTIES

FILE = Path(luthier.__file__).parent / "methods" / "conformance.json"


def reason_of(cell: Cell, needs: Ability) -> Reason | None:
    """Why a property with these needs does not apply to a cell: the whole cell first."""
    return cell.why_not() or (cell.why_not(needs) if needs is not Ability.ATTACH else None)


def made() -> dict[str, Any]:
    """The whole table, from the host's own words."""
    cells = {
        m: {
            a: {n: r.name for n, p in PROPERTIES.items() if (r := reason_of(Cell(m, a), p.needs))}
            for a in ARCHITECTURES
        }
        for m in parts()
    }
    return {"properties": sorted(PROPERTIES), "reasons": {r.name: r.short for r in Reason}, "methods": cells}


@cache
def stored() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    FILE.write_text(json.dumps(made(), indent=1) + "\n", encoding="utf-8")
