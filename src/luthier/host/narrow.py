"""A copy of the base without what an adaptation cuts: physically smaller matrices, and what is left of the adaptation on it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.host.adaptation import Adaptation
from luthier.host.applicable import rows_share
from luthier.host.places.units import ATTENTION, UnitCut, entries_of, exit_of, units
from luthier.host.sites import Site, Structure, is_transposed
from luthier.host.structure import structure_of

HEADS = ("num_heads", "num_attention_heads", "n_heads", "num_key_value_heads", "all_head_size", "inner_dim", "split_size")  # fmt: skip
"""Attributes of attention modules that count heads, or numbers of all heads."""
WIDTHS = ("intermediate_size", "d_ff", "n_inner", "ffn_dim")
"""What configurations call the units of a feed-forward layer."""


@torch.no_grad()
def smaller(base: nn.Module, adaptation: Adaptation) -> tuple[nn.Module, Adaptation]:
    """(copy of the base without the units that `adaptation` cuts, the adaptation on it). The base itself is untouched.

    Where all layers keep as many units, the copy's configuration says so: it saves and loads as any model. Raises ModelError
    where nothing is cut, or where layers cannot be cut without changing others.
    """
    structure = structure_of(base)
    cuts = [
        (i, at)
        for i, placed in enumerate(adaptation.placed())
        if isinstance(placed.part, UnitCut)
        for at in placed.ats()
    ]
    if not cuts:
        raise ModelError(
            f"{adaptation.method.name} cuts nothing from its base: a smaller model is what skip makes."
        )
    made = copy.deepcopy(base)
    for _, at in cuts:
        kept = at.values["kept"].to(next(base.parameters()).device)
        if len(kept) < units(at.site):
            (_cut_heads if at.site.role in ATTENTION else _cut_units)(made, structure, at.site, kept)
    _tell(made, base, [len(at.values["kept"]) for _, at in cuts if at.site.role == "mlp.down"])

    card, state = adaptation.card(), dict(adaptation.state())
    for i, at in cuts:
        kept = at.values["kept"]
        card["layouts"][str(i)][at.site.name] = {"units": len(kept)}
        state[f"parts.{i}.at.{at.key}.values.kept"] = torch.arange(len(kept), device=kept.device)
    rest = Adaptation.from_card(card, made).to(
        next((v.dtype for v in state.values() if v.is_floating_point()), torch.float32)
    )
    rest.load_state(state)
    return made, rest.to(next(base.parameters()).device)


def _cut_units(made: nn.Module, structure: Structure, down: Site, kept: Tensor) -> None:
    entries = entries_of(structure, down)
    if not entries:
        raise ModelError(
            f"What makes the units of {down.name} is not one output of a layer for each: it cannot be made smaller. "
            "Keep the adaptation attached instead."
        )
    for site in entries:
        _take(made.get_submodule(site.path), 0, kept)
    _take(made.get_submodule(down.path), 1, kept)


def _cut_heads(made: nn.Module, structure: Structure, site: Site, kept: Tensor) -> None:
    wanted = [structure.partner(site, f"{site.role}.{what}") for what in ("query", "key", "value")]
    if None in wanted:
        raise ModelError(
            f"Query, key and value of {site.name} are interleaved: its heads cannot be made fewer. Set cut_heads=0."
        )
    if any(rows_share(s) for s in structure.sites if s.tower == site.tower):
        raise ModelError(
            f"The layers of {structure.model} share a table of positions by head: heads cannot be made fewer in one of them. "
            "Set cut_heads=0, or keep the adaptation attached."
        )
    outputs: dict[str, list[Tensor]] = {}
    for part in wanted:
        assert part is not None
        first, width = part.rows[0] if part.rows else 0, part.out_features // site.heads
        outputs.setdefault(part.path, []).append(first + _spread(kept, width))
    for path, rows in outputs.items():
        _take(made.get_submodule(path), 0, torch.cat(rows))
    out = exit_of(structure, site)
    _take(made.get_submodule(out.path), 1, _spread(kept, out.in_features // site.heads))
    module = made.get_submodule(site.path)
    for name in HEADS:
        if isinstance(count := getattr(module, name, None), int):
            setattr(module, name, count * len(kept) // site.heads)


def _spread(kept: Tensor, width: int) -> Tensor:
    """Indices of all numbers of the units `kept`, `width` each."""
    return (kept[:, None] * width + torch.arange(width, device=kept.device)).flatten()


def _take(module: nn.Module, side: int, index: Tensor) -> None:
    """Keep these outputs (side 0) or inputs (side 1) of a linear layer."""
    layer: Any = module
    turned = is_transposed(module)
    weight = layer.weight.index_select(1 - side if turned else side, index)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=layer.weight.requires_grad)
    if side == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[index].clone(), requires_grad=layer.bias.requires_grad)
    names = ("nf", "nx") if turned else ("out_features", "in_features")
    if hasattr(layer, names[side]):
        setattr(layer, names[side], len(index))


def _tell(made: nn.Module, base: nn.Module, widths: list[int]) -> None:
    """The configuration's count of units, where it is one for all layers."""
    config = getattr(made, "config", None)
    every = {s.in_features for s in structure_of(base).sites if s.role == "mlp.down"}
    downs = sum(s.role == "mlp.down" for s in structure_of(base).sites)
    if config is None or len(widths) != downs or len(set(widths)) != 1 or len(every) != 1:
        return
    for name in WIDTHS:
        if getattr(config, name, 0) in (*every, None):
            setattr(config, name, widths[0])
