"""An adaptation as a value: copies, files, other tensors, its count, its sites."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from luthier.errors import LuthierError, SiteError
from luthier.host import Adaptation, Adapted
from luthier.host.applicable import Ability
from luthier.host.files import load, save
from luthier.host.sites import find
from tests.conformance.cells import Cell
from tests.conformance.counting import closed_form
from tests.conformance.registry import property_of
from tests.host import bed
from tests.host.copies import Template

BASE = "b" * 64


@property_of()
@torch.no_grad()
def copies_are_equal_and_apart(cell: Cell) -> None:
    model, x = cell.adapted(), cell.batch()
    got = cell.result(model, x)
    for two in (copy.deepcopy(model), Template(model).copy()):  # the latter is pickled, all but its tensors
        assert torch.equal(cell.result(two, x), got)
        for p in two.adaptations.parameters():
            if p.is_floating_point():
                p.mul_(torch.linspace(0.5, 1.5, p.numel()).view(p.shape))  # a norm may undo one factor
        assert not torch.equal(cell.result(two, x), got)
        assert torch.equal(cell.result(model, x), got)


@property_of()
@torch.no_grad()
def a_file_holds_all_of_it(cell: Cell) -> None:
    """Loaded over another copy of the base, and over one without memory (meta), the outputs are bitwise the same."""
    model, x = cell.adapted(), cell.batch()
    got, made = cell.result(model, x), model.adaptations["main"]
    with TemporaryDirectory() as folder:
        save(made, Path(folder) / "a", BASE)  # type: ignore[arg-type]
        for base in (cell.base(), cell.base().to("meta")):
            reason = cell.why_not(Ability.WITHOUT_VALUES)
            if next(base.parameters()).is_meta and reason is not None:
                with pytest.raises(LuthierError, match=reason.value):
                    load(Path(folder) / "a", base, BASE)
                continue
            found = load(Path(folder) / "a", base, BASE)
            assert found.hash() == made.hash()  # type: ignore[operator]
            again = Adapted(cell.base())
            again.attach("main", found)
            assert torch.equal(cell.result(again, x), got)


@property_of()
@torch.no_grad()
def other_tensors_of_the_same_card_can_be_put_in(cell: Cell) -> None:
    """While attached, as after a fresh attachment; wrong ones are refused whole."""
    model, x = cell.adapted(), cell.batch()
    other = Adapted(cell.base())
    value = bed.shaken(copy.deepcopy(model.adaptations["main"]), 0.3, 7)  # type: ignore[arg-type]
    other.attach("main", value)
    want, before = cell.result(other, x), cell.result(model, x)
    tensors = {k: v.clone() for k, v in value.state().items()}
    missing = dict(list(tensors.items())[1:])
    with pytest.raises(LuthierError, match="missing"):
        model.adaptations["main"].load_state(missing)  # type: ignore[operator]
    assert torch.equal(cell.result(model, x), before)
    model.adaptations["main"].load_state(tensors)  # type: ignore[operator]
    assert torch.equal(cell.result(model, x), want)


@property_of()
def the_count_is_the_closed_form(cell: Cell) -> None:
    made = cell.new(cell.base())
    assert made.counts() == {"method": closed_form(cell, made), "head": 0}


@property_of()
def targets_are_exact(cell: Cell) -> None:
    """Every role that the method takes, in one layer: there and nowhere else; a layer too many is refused."""
    base = cell.base()
    for part in cell.part.parts():
        blocks = len(cell.structure.towers[0].blocks)
        terms = [t.strip() for t in part.targets.split("|")]
        layered = [t for t in terms if t and in_blocks(cell, t)]
        if layered:
            narrow = dataclasses.replace(part, targets=" | ".join(f"{t}[1]" for t in layered))
            found = narrow.sites(cell.structure)
            assert found and all(s.layer == 1 for s in found), [s.name for s in found]
            assert {s.name for s in found} == {s.name for s in part.sites(cell.structure) if s.layer == 1}
        for wrong in (
            f"{terms[0]}[{blocks}]",
            f"{terms[0]}[-9:]",
            "no.such.role",
            f"{terms[0]} | no.such.role",
        ):
            asked = dataclasses.replace(part, targets=wrong)
            with pytest.raises(SiteError, match=r"layer|No site|is in a block"):
                Adapted(base).attach("main", Adaptation.new(asked, base))
            assert not any("forward" in m.__dict__ for m in base.modules())


def in_blocks(cell: Cell, term: str) -> bool:
    try:
        return any(s.layer is not None for s in find(cell.structure, term))
    except SiteError:
        return False
