"""What an adaptation does to the outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.host.applicable import Ability
from luthier.host.probe import cannot_matter, dead_sites
from tests.conformance.cells import Cell
from tests.conformance.registry import GREEDY, base_result, property_of, written_from
from tests.host import bed


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
    idle = cannot_matter(made, model.base)
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


@property_of(Ability.GENERATE)
@torch.no_grad()
def generation_with_a_cache_equals_without(cell: Cell) -> None:
    """Greedy and with beams; rows with padding on the left."""
    model, x = cell.adapted(), cell.batch()
    for beams in (1, 2):
        options = {**written_from(x), **GREEDY, "num_beams": beams}
        cached = model.generate(**options, use_cache=True)
        assert torch.equal(cached, model.generate(**options, use_cache=False))
