"""Compiled equals eager: once per place and architecture with aot_eager, and one canary through Inductor where a compiler works.

The model is cut to one block: what differs between blocks is no matter of compiling.
"""

from __future__ import annotations

import shutil
import time

import pytest
import torch
from torch import nn

from luthier.host import Adapted
from luthier.host.structure import discover
from tests.conformance.cells import ARCHITECTURES, Cell, parts, started
from tests.host import bed


def place_of(part) -> str:
    places = {
        next(c.__name__ for c in type(p).__mro__ if c.__module__.startswith("luthier.host.places"))
        for p in part.parts()
    }
    return " + ".join(sorted(places))


def first_of_each_place() -> dict[str, str]:
    """{place: the first method that enters there}; methods of several places are covered by their parts."""
    found: dict[str, str] = {}
    for name, part in parts().items():
        if "+" not in place_of(part):
            found.setdefault(place_of(part), name)
    return found


MOST_GRAPHS = 3
"""In one forward of one block, of which the base alone takes one or two: what is attached leaves the graph nowhere."""
CELLS = [Cell(m, a) for m in first_of_each_place().values() for a in ARCHITECTURES]


def one_block(base: nn.Module) -> nn.Module:
    for tower in discover(base).towers:
        del base.get_submodule(tower.blocks[0].rpartition(".")[0])[1:]
    for m in base.modules():
        config = getattr(m, "config", None)
        for name in ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer"):
            if isinstance(getattr(config, name, None), int):
                setattr(config, name, 1)
    return base


def short(cell: Cell) -> Adapted:
    model = Adapted(one_block(cell.base()))
    model.attach("main", bed.shaken(started(cell.part, model.base, cell.batch())))
    return model


@pytest.mark.parametrize("cell", CELLS, ids=str)
@torch.no_grad()
def test_compiled_equals_eager(cell: Cell) -> None:
    if cell.why_not() is not None:
        return  # the cell is refused, which test_conformance asks for
    model, x = short(cell), cell.batch(rows=2, tokens=5)
    want = cell.result(model, x)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    got = cell.result(torch.compile(model, backend="aot_eager"), x)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= MOST_GRAPHS
    bed.close(got, want, 1e-5)


@torch.no_grad()
def test_a_canary_through_inductor() -> None:
    if not any(shutil.which(c) for c in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler, which Inductor needs")
    torch._dynamo.reset()
    began = time.process_time()
    try:
        torch.compile(torch.nn.Linear(4, 4), backend="inductor")(torch.ones(2, 4))
    except Exception as error:
        pytest.skip(f"Inductor does not work here: {type(error).__name__}")
    if time.process_time() - began > 15:
        pytest.skip("Inductor takes more than 15 s for one linear layer here")
    model, x = short(Cell("lora", "bert")), bed.batch("bert")
    want = bed.result(model, x)
    torch._dynamo.reset()
    bed.close(bed.result(torch.compile(model, backend="inductor"), x), want, 1e-4)
