"""What both directions speak of: parts with their tensors as their sources make them, and what a folder was read as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.host.part import Part
from luthier.host.placed import Placed
from luthier.host.sites import Site


@dataclass
class Piece:
    """One part of what is exported, with the coefficient of its term."""

    scale: float
    placed: Placed

    @property
    def part(self) -> Part:
        return self.placed.part

    @torch.no_grad()
    def made(self, anchor: bool = False) -> list[tuple[Site, Mapping[str, Tensor]]]:
        """Each site's tensors, settled: what a source computes from parameters of its own is computed once.

        anchor: those of an anchored start; none where it is not.
        """
        placed, source = self.placed, self.placed.part.source
        if source.by_row:
            raise ModelError(
                f"{self.part.name}: its numbers depend on each row ({source.name}), which peft's layout can't hold. Keep it in luthier's."
            )
        try:
            ready = placed.prepare(None)
            out: list[tuple[Site, Mapping[str, Tensor]]] = []
            for at in placed.ats():
                values = at.anchor if anchor else at.values
                if anchor and not len(values):
                    continue
                out.append((at.site, dict(at.made(None, ready, values))))
        except AttributeError:
            raise ModelError(
                f"{self.part.name}: its numbers are made from the input ({source.name}), which peft's layout can't hold. Keep it in luthier's."
            ) from None
        return out


@dataclass
class Imported:
    """What a folder describes. fill: its tensors -> {(part, site, tensor): value}, called after all shapes were checked."""

    method: Part
    sites: list[list[Site]]
    fill: Callable[[Mapping[str, Tensor]], dict[tuple[int, str, str], Tensor]]
    notes: list[str] = field(default_factory=list)


def slice_into(base: nn.Module, site: Site, value: Tensor, rest: float = 0.0) -> Tensor:
    """Rows of a fused projection's slice, among all rows of the module; the others hold `rest`."""
    if site.rows is None:
        return value
    module: Any = base.get_submodule(site.path)
    total = module.weight.shape[1 if site.transposed else 0]
    full = value.new_full((total, *value.shape[1:]), rest)
    full[site.rows[0] : site.rows[1]] = value
    return full


def one(pieces: Sequence[Piece], what: str) -> Piece:
    """The only piece, with coefficient 1. ModelError where effects would have to be added that do not add."""
    if len(pieces) != 1 or pieces[0].scale != 1.0:
        raise ModelError(
            f"{what} has no additive effect: a sum or a multiple of it can't be exported. Export each adaptation on its own."
        )
    return pieces[0]
