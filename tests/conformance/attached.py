"""Being attached, beside others, for some rows only, and no longer."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adapted
from luthier.host.applicable import Ability, can_generate
from tests.conformance.cells import Cell
from tests.conformance.registry import GREEDY, equal, property_of, values, written_from
from tests.host import bed


@property_of()
@torch.no_grad()
def disabled_is_the_base_and_detach_leaves_no_trace(cell: Cell) -> None:
    base, x = cell.base(), cell.batch()
    keys, modules, before = list(base.state_dict()), [n for n, _ in base.named_modules()], values(base)
    flags = [p.requires_grad for p in base.parameters()]
    model = Adapted(base)
    clean = {k: copy.copy(v) for k, v in model.__dict__.items() if not k.startswith("_")}
    want = cell.result(model, x)
    model.attach("main", cell.shaken(base))
    with model.using():
        assert torch.equal(cell.result(model, x), want)
        if can_generate(base):
            bare = cell.base().generate(**written_from(x), **GREEDY)
            assert torch.equal(model.generate(**written_from(x), **GREEDY), bare)
    assert [n for n, _ in base.named_modules()] == modules and list(base.state_dict()) == keys
    if cell.why_not(Ability.MERGE) is None:
        model.merge("main")
        with model.using():
            assert torch.equal(cell.result(model, x), want), "disabled while merged"
        model.unmerge("main")
    model.detach()
    assert torch.equal(cell.result(model, x), want) and equal(values(base), before)
    for m in base.modules():
        assert not ({"forward", "luthier_port"} & set(m.__dict__))
        assert not m._forward_pre_hooks and not m._forward_hooks and not m._backward_hooks
    assert getattr(getattr(base, "config", None), "_attn_implementation", "") in ("", "sdpa", "eager", None)
    assert [p.requires_grad for p in base.parameters()] == flags
    left = {k: v for k, v in model.__dict__.items() if not k.startswith("_")}
    assert left.keys() == clean.keys()
    for k, v in clean.items():
        if isinstance(v, (dict, list, tuple, int)):
            assert left[k] == v, f"{k} still holds {left[k]}"


@property_of()
@torch.no_grad()
def names_are_checked_before_anything_changes(cell: Cell) -> None:
    model, x = cell.adapted(), cell.batch()
    want, hooks = cell.result(model, x), count_hooks(model)
    for asked in (
        lambda: model.attach("main", cell.new(model.base)),
        lambda: model.attach("a.b", cell.new(model.base)),
        lambda: model.detach("another"),
        lambda: model.merge("another"),
        lambda: model.unmerge("main"),
        lambda: model.using("another").__enter__(),
        lambda: model({**x, "adaptation": ["another"] * 4}),
    ):
        with pytest.raises(OptionError):
            asked()
        assert list(model.adaptations) == ["main"] == list(model.active) and count_hooks(model) == hooks
    assert torch.equal(cell.result(model, x), want)


def count_hooks(model: Adapted) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__)
        for m in model.base.modules()
    )


@property_of()
@torch.no_grad()
def several_do_not_disturb_each_other(cell: Cell) -> None:
    model, x = cell.adapted(), cell.batch()
    alone = cell.result(model, x)
    model.attach("other", cell.partner(model.base))
    both = cell.result(model, x)
    assert torch.isfinite(both).all() and not torch.allclose(both, alone)
    with model.using("main"):
        assert torch.equal(cell.result(model, x), alone)
    with model.using("other"):
        other = cell.result(model, x)
        assert not torch.allclose(other, alone) and not torch.allclose(other, both)
    with model.using("main", "other"):
        assert torch.equal(cell.result(model, x), both)
    model.detach("other")
    assert torch.equal(cell.result(model, x), alone)
    model.attach("other", cell.partner(model.base))
    assert torch.equal(cell.result(model, x), both)
    model.detach("main")
    assert torch.equal(cell.result(model, x), other)


@property_of()
def threads_do_not_see_each_other(cell: Cell) -> None:
    """Two forwards of one model at once, one adapted and one not: they meet at the first block and again at the last."""
    model, x = cell.adapted(), cell.batch()
    with torch.no_grad():
        want = {("main",): cell.result(model, x)}
        with model.using():
            want[()] = cell.result(model, x)
    meet, got, failed = threading.Barrier(2), {}, []
    blocks = model.structure.towers[0].blocks
    handles = [
        model.base.get_submodule(path).register_forward_pre_hook(lambda m, a: _wait(meet))
        for path in (blocks[0], blocks[-1])  # neither ends before the other is past the first
    ]

    def work(names: tuple[str, ...]) -> None:
        try:
            with torch.no_grad(), model.using(*names):
                got[names] = cell.result(model, x)
        except Exception as error:
            meet.abort()
            failed.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in want]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for handle in handles:
        handle.remove()
    assert not failed, failed
    assert all(torch.equal(got[k], want[k]) for k in want)


def _wait(meet: threading.Barrier) -> None:
    meet.wait(timeout=20)


@property_of(Ability.SHARE_ROWS)
@torch.no_grad()
def a_mixed_batch_equals_row_by_row(cell: Cell) -> None:
    """Rows of this method, of another and of the base in one batch; with beams, and while it is merged."""
    model, x = cell.adapted(), cell.batch()
    model.attach("other", cell.partner(model.base))
    who = ["other", "main", None, "main"]
    together = cell.result(model, {**x, "adaptation": who})
    written = None
    if can_generate(model.base):
        with model.given(adaptation=who):
            written = model.generate(**written_from(x), **GREEDY, num_beams=2)
    for i, key in enumerate(who):
        row = {k: v[i : i + 1] for k, v in x.items()}
        with model.using(*([key] if key else [])):
            bed.close(together[i : i + 1], cell.result(model, row), 1e-4)
            if written is not None:
                one = model.generate(**written_from(row), **GREEDY, num_beams=2)
                assert torch.equal(written[i], one[0])
    if cell.why_not(Ability.MERGE) is None:
        model.merge("main")
        bed.close(cell.result(model, {**x, "adaptation": who}), together, 1e-4)


@property_of(Ability.SCALE)
@torch.no_grad()
def a_coefficient_scales_the_effect(cell: Cell) -> None:
    base, x = cell.base(), cell.batch()
    model, made = Adapted(base), cell.shaken(base)
    want = cell.result(model, x)
    with model.attached(made):
        whole = cell.result(model, x)
    with model.attached(1.0 * made):
        assert torch.equal(cell.result(model, x), whole)
    with model.attached(0.0 * made):
        bed.close(cell.result(model, x), want, 1e-6)
    with model.attached(0.5 * made):
        half = cell.result(model, x)
    assert not torch.allclose(half, whole) and not torch.allclose(half, want)
