"""Every method on every architecture keeps to every property, or is refused for a reason of the host's closed list."""

from __future__ import annotations

from functools import cache

import pytest

from luthier.errors import LuthierError
from luthier.host import Adapted
from luthier.host.applicable import Ability, Reason
from luthier.host.probe import refuse_dead
from tests.conformance.cells import Cell, all_cells
from tests.conformance.properties import GREEDY, PROPERTIES, Property
from tests.conformance.table import reason_of, stored

CELLS = all_cells()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_conformance(cell: Cell) -> None:
    """All properties, also behind one that fails; one test for each would be twenty thousand."""
    failed: dict[str, BaseException] = {}
    for named in PROPERTIES.values():
        try:
            holds_or_is_refused(named, cell)
        except (Exception, pytest.fail.Exception) as error:
            failed[named.name] = error
    if failed:
        raise BaseExceptionGroup(", ".join(failed), list(failed.values()))


def holds_or_is_refused(named: Property, cell: Cell) -> None:
    reason = reason_of(cell, named.needs)
    if reason is None:
        named.check(cell)
    else:
        asking_raises(cell, named.needs, reason)


@cache  # one question for all properties with these needs
def asking_raises(cell: Cell, needs: Ability, reason: Reason) -> None:
    """What does not apply is refused, by an error of that reason which says so, and leaves no trace."""
    model = Adapted(cell.base())
    with pytest.raises(LuthierError) as raised:
        model.attach("main", cell.shaken(model.base))
        refuse_dead(model, "main", cell.batch())
        ASKED[needs](cell, model)
    assert raised.value.reason is reason and reason.value in str(raised.value)
    assert "\n" not in str(raised.value)
    for name in list(model.adaptations):
        model.detach(name)
    assert not any("forward" in m.__dict__ for m in model.base.modules())


def scaled(cell: Cell, model: Adapted) -> None:
    model.detach("main")
    model.attach("main", 0.5 * cell.shaken(model.base))
    model(cell.batch())


def shared(cell: Cell, model: Adapted) -> None:
    model({**cell.batch(), "adaptation": ["main", None, None, "main"]})


ASKED = {
    Ability.ATTACH: lambda cell, model: None,
    Ability.MERGE: lambda cell, model: model.merge("main"),
    Ability.SCALE: scaled,
    Ability.SHARE_ROWS: shared,
    Ability.RECOMPUTE: lambda cell, model: model.checkpoint(),
    Ability.GENERATE: lambda cell, model: model.generate(**GREEDY),
}


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_what_is_published_of_a_cell_is_fresh(cell: Cell) -> None:
    """If this fails: make methods"""
    found = {n: r.name for n, p in PROPERTIES.items() if (r := reason_of(cell, p.needs))}
    assert stored()["methods"][cell.method][cell.architecture] == found


def test_nothing_else_is_published() -> None:
    """If this fails: make methods"""
    held = stored()
    assert held["properties"] == sorted(PROPERTIES) and set(held["methods"]) == {c.method for c in CELLS}
    assert held["reasons"] == {r.name: r.short for r in Reason}
