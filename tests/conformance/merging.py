"""Merging, unmerging, and weights that are tied."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from luthier.errors import LuthierError, ModelError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.applicable import Ability
from luthier.host.places import WeightEdit
from tests.conformance.cells import Cell, started
from tests.conformance.registry import BF16_BOUND, equal, property_of, values
from tests.host import bed


@property_of(Ability.MERGE)
@torch.no_grad()
def merged_equals_unmerged_and_unmerge_is_bitwise(cell: Cell) -> None:
    """In float64, float32 and bfloat16, alone and with another, and with so few tokens that no weight is folded on the way; twice is
    refused."""
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, BF16_BOUND)):
        model = cell.adapted()
        model.attach("other", cell.partner(model.base))
        x = {k: v.to(dtype) if v.is_floating_point() else v for k, v in cell.batch().items()}
        model.base.to(dtype)
        if dtype is torch.float64:
            model.adaptations.to(dtype)
        before, parameters = values(model.base), dict(model.base.named_parameters())
        both = cell.result(model, x)
        few = {k: v[:1] for k, v in x.items()}
        with model.using("main"):
            alone, alone_few = cell.result(model, x), cell.result(model, few)
            model.merge("main")
            bed.close(cell.result(model, x), alone, bound)
            bed.close(cell.result(model, few), alone_few, bound)
            with pytest.raises(OptionError, match="merged already"):
                model.merge("main")
        bed.close(cell.result(model, x), both, 2 * bound)  # the bound is of one adaptation
        model.merge("other")
        bed.close(cell.result(model, x), both, 2 * bound)
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
    made = bed.shaken(started(own, base, x, members=cell.members(base)))
    model.attach("main", made)
    assert torch.isfinite(cell.result(model, x)).all()
    assert ties(base) == shared
    if cell.why_not(Ability.MERGE) is None:
        model.merge("main")
        model.unmerge("main")
        assert ties(base) == shared
        other = at_the_tied_head(cell, base, x)
        if other is not None:
            model.detach()
            model.attach("head", other)
            got = cell.result(model, x)
            embedding = base.get_input_embeddings().weight.clone()
            model.merge("head")
            assert torch.equal(base.get_input_embeddings().weight, embedding), (
                "the merge went into the embedding"
            )
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


def at_the_tied_head(cell: Cell, base: Any, x: dict[str, Any]) -> Adaptation | None:
    """The same method at a head whose weight is the embedding's, where it edits linear weights and can stand there."""
    head = getattr(base, "get_output_embeddings", lambda: None)()
    if (
        head is None
        or head.weight is not base.get_input_embeddings().weight
        or not isinstance(cell.part, WeightEdit)
    ):
        return None
    try:
        return bed.shaken(started(dataclasses.replace(cell.part, targets="head"), base, x))
    except LuthierError as error:  # a head has no attention heads
        if error.reason is None:
            raise
        return None
