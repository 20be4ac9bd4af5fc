"""What every method must keep to on every architecture: one plain function per property, in a registry.

A property gets a cell and asserts. The parametrised suite calls them, and so do the meta-tests, which plant a fault in the host
and expect exactly one of them to fail.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from luthier.errors import LuthierError, ModelError, OptionError, SiteError
from luthier.host import Adaptation, Adapted
from luthier.host.applicable import Ability, can_generate
from luthier.host.files import load, save
from luthier.host.probe import cannot_matter, dead_sites
from tests.conformance.cells import Cell
from luthier.train import snapshot
from tests.conformance.counting import closed_form
from tests.host import bed

BASE = "b" * 64
BF16_BOUND = 0.12
"""Of the largest output, for three random blocks in bfloat16, which keeps 8 bits; 0.093 seen."""


class Property(NamedTuple):
    """check(cell) asserts the statement; needs: what the host must be able to do for it to mean anything."""

    name: str
    check: Callable[[Cell], None]
    needs: Ability


PROPERTIES: dict[str, Property] = {}


def property_of(needs: Ability = Ability.ATTACH) -> Callable[[Callable[[Cell], None]], Callable[[Cell], None]]:
    def keep(check: Callable[[Cell], None]) -> Callable[[Cell], None]:
        PROPERTIES[check.__name__] = Property(check.__name__, check, needs)
        return check

    return keep


def base_result(cell: Cell, x: dict[str, Any] | None = None) -> Tensor:
    return cell.result(Adapted(cell.base()), cell.batch() if x is None else x)


def values(model: Any) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def in_double(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in x.items()}


# -- what it does


@property_of()
@torch.no_grad()
def start_is_the_base_where_promised(cell: Cell) -> None:
    want, got = base_result(cell), cell.result(cell.adapted(shake=False), cell.batch())
    promised = all(p.identity_start for p in cell.part.parts())
    if promised and cell.architecture == "mamba":
        bed.close(got, want, 1e-5)  # its convolution takes another path for parameters that train
    else:
        assert torch.equal(got, want) == promised


@property_of()
@torch.no_grad()
def another_start_changes_the_output(cell: Cell) -> None:
    want, got = base_result(cell), cell.result(cell.adapted(), cell.batch())
    assert torch.isfinite(got).all() and not torch.allclose(got, want)


@property_of()
def nothing_is_dead(cell: Cell) -> None:
    """Every site changes the output, and every trained tensor has a gradient above rounding noise."""
    model = cell.adapted()
    made = model.adaptations["main"]
    assert not dead_sites(model, "main", cell.batch())
    y = cell.result(model, cell.batch()).float()
    (y - torch.cos(torch.arange(y.numel()).view(y.shape) * 0.7)).pow(2).mean().backward()
    idle = cannot_matter(made)
    size = {
        n: 0.0 if p.grad is None else p.grad.abs().max().item()
        for n, p in made.trainable().items()
        if n not in idle
    }
    noise = 1e-9 * max(1.0, *size.values())
    assert not [n for n, g in size.items() if g <= noise]


@property_of()
@torch.no_grad()
def rows_do_not_mix_and_padding_is_not_seen(cell: Cell) -> None:
    """Every row alone, without its padding, gives what it gives in the batch."""
    model, x = cell.adapted(), positioned(cell, cell.batch())
    together = cell.result(model, x)
    for i in range(len(together)):
        row = {k: v[i : i + 1] for k, v in x.items()}
        mask = row.get("attention_mask")
        if mask is None:
            bed.close(cell.result(model, row), together[i : i + 1], 1e-4)
            continue
        seen = mask[0].bool()
        for k in ("input_ids", "attention_mask", "position_ids"):
            if k in row:
                row[k] = row[k][:, seen]
        whole = together[i : i + 1]
        bed.close(cell.result(model, row), whole[:, seen] if whole.shape[1] == len(seen) else whole, 1e-4)


def positioned(cell: Cell, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """With explicit positions, as generation gives them, where padding is on the left of a model that has some."""
    tower = cell.structure.towers[0] if cell.structure.towers else None
    if tower is None or not tower.causal or "position_ids" not in tower.takes or "attention_mask" not in x:
        return x
    return {**x, "position_ids": (x["attention_mask"].cumsum(1) - 1).clamp(min=0)}


# -- being attached, and not


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
    got = cell.result(model, x)
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
        bed.close(cell.result(model, x), got, 1e-4)
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
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in model.base.modules()
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
    """Two forwards of one model at once, one adapted and one not: both are inside the first block together."""
    model, x = cell.adapted(), cell.batch()
    with torch.no_grad():
        want = {("main",): cell.result(model, x)}
        with model.using():
            want[()] = cell.result(model, x)
    meet, got, failed = threading.Barrier(2), {}, []
    first = model.structure.towers[0].blocks[0]
    handle = model.base.get_submodule(first).register_forward_pre_hook(lambda m, a: _wait(meet))

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


# -- training


@property_of()
def training_moves_what_trains_and_nothing_else(cell: Cell) -> None:
    """Inside every phase of the plan, between one step and the next."""
    run = cell.run()
    seen: list[tuple[int, set[str], dict[str, Tensor]]] = []
    base = values(run.adapted.base)

    def note(run: Any) -> None:
        state = {
            f"{n}.{k}": v.detach().clone()
            for n, a in run.adapted.adaptations.items()
            for k, v in a.state(everything=True).items()
        }
        trains = set() if run.phase.step else set(run.named)
        seen.append((run.index, trains, state))

    walk(run, note)
    assert equal(values(run.adapted.base), base)
    idle = {f"main.{n}" for n in cannot_matter(run.main)}
    assert any(trains for _, trains, _ in seen)
    for (phase, trains, before), (now, _, after) in zip(seen, seen[1:]):
        if phase == now:
            moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
            assert trains - idle <= moved <= trains, (moved ^ trains) - idle


def walk(run: Any, after_step: Callable[[Any], None]) -> None:
    """The whole plan."""
    from luthier.train.run import Watcher
    from luthier.train.snapshot import own_randomness

    class Tell(Watcher):
        def after_step(self, run: Any) -> None:
            after_step(run)

    with own_randomness(0):
        run.go(Tell())


@property_of()
def a_run_resumes_bitwise_inside_every_phase(cell: Cell) -> None:
    import json

    from luthier.train.snapshot import take

    kept: dict[int, Any] = {}

    def keep(run: Any) -> None:
        if run.index not in kept:  # after the first of its steps
            state, tensors = take(run)
            kept[run.index] = json.dumps(state), {k: v.clone() for k, v in tensors.items()}

    run = cell.run()
    walk(run, keep)
    want = values(run.main)
    assert sorted(kept) == list(range(len(run.phases)))
    for state, tensors in kept.values():
        again = cell.run()
        snapshot.put_back(again, json.loads(state), tensors)
        again.go()
        assert equal(values(again.main), want)


@property_of(Ability.RECOMPUTE)
def checkpointing_gives_the_same_gradients(cell: Cell) -> None:
    """With a forward of the base before the backward pass, and with two contexts in one loss."""

    def gradients(recompute: bool, both: bool) -> dict[str, Tensor | None]:
        model, x = cell.adapted(), cell.batch()
        model.attach("other", cell.partner(model.base))
        if recompute:
            model.checkpoint()
        with model.using("main"):
            loss = cell.result(model, x).float().pow(2).mean()
        with model.using(*(["main", "other"] if both else [])):
            y = cell.result(model, x).float()
            loss = loss + y.pow(3).mean() if both else loss
        loss.backward()
        return {n: p.grad for n, p in model.adaptations["main"].trainable().items()}

    for both in (False, True):
        plain, recomputed = gradients(False, both), gradients(True, both)
        assert any(g is not None for g in plain.values())
        for n, g in plain.items():
            assert (g is None) == (recomputed[n] is None), n
            if g is not None:
                size = max(1.0, g.abs().max().item())
                bed.close(recomputed[n] / size, g / size, 1e-4)  # type: ignore[operator]


@property_of()
def autocast_is_finite_and_close(cell: Cell) -> None:
    model, x = cell.adapted(), cell.batch()
    want = cell.result(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        got = cell.result(model, x)
    got.float().pow(2).mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.adaptations["main"].parameters() if p.grad is not None)
    assert torch.isfinite(got).all()
    bed.close(got.float(), want, BF16_BOUND)


# -- merging


@property_of(Ability.MERGE)
@torch.no_grad()
def merged_equals_unmerged_and_unmerge_is_bitwise(cell: Cell) -> None:
    """In float64, float32 and bfloat16, alone and with another; twice is refused."""
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, BF16_BOUND)):
        model = cell.adapted()
        model.attach("other", cell.partner(model.base))
        x = {k: v.to(dtype) if v.is_floating_point() else v for k, v in cell.batch().items()}
        model.base.to(dtype)
        if dtype is torch.float64:
            model.adaptations.to(dtype)
        before, parameters = values(model.base), dict(model.base.named_parameters())
        both = cell.result(model, x)
        with model.using("main"):
            alone = cell.result(model, x)
            model.merge("main")
            bed.close(cell.result(model, x), alone, bound)
            with pytest.raises(OptionError, match="merged already"):
                model.merge("main")
        bed.close(cell.result(model, x), both, bound)
        model.merge("other")
        bed.close(cell.result(model, x), both, 2 * bound)  # the bound is of one merge
        model.unmerge("other")
        model.unmerge("main")
        assert all(p is parameters[n] for n, p in model.base.named_parameters())
        assert equal(values(model.base), before)
        assert torch.equal(cell.result(model, x), both)


@property_of(Ability.MERGE)
@torch.no_grad()
def a_merge_that_is_not_finite_changes_nothing(cell: Cell) -> None:
    model = cell.adapted()
    for p in model.adaptations["main"].trainable().values():
        p.fill_(float("nan"))
    parameters, before = dict(model.base.named_parameters()), values(model.base)
    with pytest.raises(ModelError, match="nothing was merged"):
        model.merge("main")
    assert not model.merged and equal(values(model.base), before)
    assert all(p is parameters[n] for n, p in model.base.named_parameters())


@property_of()
@torch.no_grad()
def ties_survive_also_after_resizing(cell: Cell) -> None:
    """Who shares a parameter with whom stays as it was; a merged change at a tied head is not written into the embedding."""
    base, x = cell.base(), cell.batch()
    if cell.structure.towers[0].embedding is not None:
        Adapted(base)  # its structure is known before it is resized
        base.resize_token_embeddings(bed.VOCABULARY + 8)
        x = {**x, "input_ids": x["input_ids"] + 8}
    shared = ties(base)
    model = Adapted(base)
    own = cell.own if cell.own is not None else cell.part
    made = bed.shaken(Adaptation.new(own, base))
    model.attach("main", made)
    assert torch.isfinite(cell.result(model, x)).all()
    assert ties(base) == shared
    if cell.why_not(Ability.MERGE) is None:
        model.merge("main")
        model.unmerge("main")
        assert ties(base) == shared
        other = at_the_tied_head(cell, base)
        if other is not None:
            model.detach()
            model.attach("head", other)
            got = cell.result(model, x)
            embedding = base.get_input_embeddings().weight.clone()
            model.merge("head")
            assert torch.equal(base.get_input_embeddings().weight, embedding), "the merge went into the embedding"
            bed.close(cell.result(model, x), got, 1e-5)
            model.unmerge("head")
    model.detach()
    assert ties(base) == shared


def ties(base: Any) -> set[frozenset[str]]:
    """Names of parameters that are one."""
    groups: dict[int, set[str]] = {}
    for n, p in base.named_parameters(remove_duplicate=False):
        groups.setdefault(id(p), set()).add(n)
    return {frozenset(g) for g in groups.values() if len(g) > 1}


def at_the_tied_head(cell: Cell, base: Any) -> Adaptation | None:
    """The same method at a head whose weight is the embedding's, where it edits linear weights and there is one."""
    import dataclasses

    from luthier.host.places import WeightEdit

    head = getattr(base, "get_output_embeddings", lambda: None)()
    if head is None or head.weight is not base.get_input_embeddings().weight or not isinstance(cell.part, WeightEdit):
        return None
    return bed.shaken(Adaptation.new(dataclasses.replace(cell.part, targets="head"), base))


# -- as a value


@property_of()
@torch.no_grad()
def copies_are_equal_and_apart(cell: Cell) -> None:
    model, x = cell.adapted(), cell.batch()
    got = cell.result(model, x)
    for two in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(cell.result(two, x), got)
        for p in two.adaptations.parameters():
            if p.is_floating_point():
                p.mul_(0.5)
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
    import dataclasses

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
        for wrong in (f"{terms[0]}[{blocks}]", f"{terms[0]}[-9:]", "no.such.role", f"{terms[0]} | no.such.role"):
            asked = dataclasses.replace(part, targets=wrong)
            with pytest.raises(SiteError, match="layer|No site|is in a block"):
                Adapted(base).attach("main", Adaptation.new(asked, base))
            assert not any("forward" in m.__dict__ for m in base.modules())


def in_blocks(cell: Cell, term: str) -> bool:
    from luthier.host.sites import find

    try:
        return any(s.layer is not None for s in find(cell.structure, term))
    except SiteError:
        return False


# -- generation

GREEDY = {"max_new_tokens": 4, "do_sample": False}


def written_from(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: x[k] for k in ("input_ids", "attention_mask")}


@property_of(Ability.GENERATE)
@torch.no_grad()
def generation_with_a_cache_equals_without(cell: Cell) -> None:
    """Greedy and with beams; rows with padding on the left."""
    model, x = cell.adapted(), cell.batch()
    for beams in (1, 2):
        options = {**written_from(x), **GREEDY, "num_beams": beams}
        cached = model.generate(**options, use_cache=True)
        assert torch.equal(cached, model.generate(**options, use_cache=False))
