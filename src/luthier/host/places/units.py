"""Leaving hidden units out: units of feed-forward layers, and heads of attention, that a task does without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.errors import OptionError, SiteError
from luthier.host.applicable import Reason, because
from luthier.host.exchange import NARROWED, Chain, exchange
from luthier.host.part import Layout, Part, Spec
from luthier.host.sites import Site, Structure, is_transposed

if TYPE_CHECKING:
    from luthier.host.adaptation import Adaptation
    from luthier.host.adapted import Adapted
    from luthier.host.placed import At, Placed

ATTENTION = ("attention", "cross_attention")


class UnitCut(Part):
    """kept: (units,) int64, the hidden units of a site that stay; the others are zero. At first all stay.

    trained: 0
    `mlp.down`: a unit is one input of the layer. `attention`, `cross_attention`: a unit is the query heads that share one key and
    value head. Where nothing else is attached to a feed-forward layer, only the kept rows and columns of its weights are
    multiplied, so that it is faster; elsewhere what is cut is set to zero, with the same outputs. Heads are set to zero.
    `luthier.host.narrow` makes a copy of the base in which everything that is cut is gone.
    """

    name: ClassVar[str] = "unit_cut"

    def check(self, sites: Sequence[Site]) -> None:
        for s in sites:
            if s.role != "mlp.down" and s.role not in ATTENTION:
                raise OptionError(
                    f"{self.name} leaves out hidden units at mlp.down, attention or cross_attention, not at {s.name} ({s.role})."
                )
            if s.role in ATTENTION and not s.heads:
                raise because(
                    SiteError(f"{self.name} at {s.name}: the width of a head is not known."),
                    Reason.NO_HEAD_WIDTH,
                )

    def layout(self, site: Site) -> Layout:
        return {"units": units(site)}

    def tensors(self, site: Site, layout: Layout) -> Mapping[str, Spec]:
        every = units(site)
        return {"kept": Spec((layout["units"],), _first, False, dtype=torch.int64, bounds=(0, every - 1))}

    def install(self, placed: Placed, adapted: Adapted) -> Iterator[Any]:
        for at in placed.ats():
            cutting = Cutting(at, adapted)
            yield exchange(cutting.exit, cutting.leave, NARROWED)
            for i, module in enumerate(cutting.entries):
                yield exchange(module, Entering(cutting, i).forward, NARROWED)


def _first(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.arange(shape[0])


def units(site: Site) -> int:
    """How many units a site has."""
    return site.heads if site.role in ATTENTION else site.in_features


def keep(adaptation: Adaptation, part: int, kept: Mapping[str, Tensor]) -> None:
    """Give the sites of a part the units that stay, {site: indices}; what these leave out is cut."""
    layout = {name: {"units": len(index)} for name, index in kept.items()}
    adaptation.reform({str(part): layout}, lambda placed, site, specs: {"kept": kept[site.name]})  # type: ignore[union-attr]


def exit_of(structure: Structure, site: Site) -> Site:
    """The layer that reads a site's units: the feed-forward's last, or the projection that closes the attention."""
    if site.role not in ATTENTION:
        return site
    found = structure.partner(site, f"{site.role}.output")
    if found is None:
        raise because(
            SiteError(
                f"What heads return is read by {site.role}.output, which the block of {site.name} does not have."
            ),
            Reason.NO_PARTNER,
        )
    return found


def entries_of(structure: Structure, down: Site) -> list[Site]:
    """The layers that make the units of a feed-forward layer, one output for each unit; none where that is not how they are made."""
    found = [
        s
        for s in structure.sites
        if s.role in ("mlp.up", "mlp.gate")
        and (s.tower, s.layer) == (down.tower, down.layer)
        and s.out_features == down.in_features
    ]
    beside = [s for s in found if s.path.rpartition(".")[0] == down.path.rpartition(".")[0]] or found
    return beside if [s.role for s in beside].count("mlp.up") == 1 and len(beside) <= 2 else []


class Cutting:
    """One site's cut: which modules it concerns, and the parts of their weights that stay."""

    def __init__(self, at: At, adapted: Adapted):
        structure, base = adapted.structure, adapted.base
        self.at, self.units = at, units(at.site)
        down = exit_of(structure, at.site)
        self.exit, self.width = base.get_submodule(down.path), down.in_features // self.units
        entries = entries_of(structure, down) if at.site.role not in ATTENTION else []
        self.entries = [base.get_submodule(s.path) for s in entries]
        self.held: tuple[list[Any], list[tuple[Tensor, Tensor | None]]] = [], []

    @property
    def narrow(self) -> bool:
        """Whether smaller weights do: for all rows, with nothing else at these layers that would see fewer units than it knows."""
        at, modules = self.at, [self.exit, *self.entries]
        return (
            bool(self.entries)
            and at.on
            and at.placed.owner not in at.ctx.rows  # type: ignore[union-attr]
            and at.placed.scale == 1.0
            and not at.part.source.by_row
            and at.values["kept"].shape[-1] < self.units
            and all(_alone(m) for m in modules)
        )

    def pieces(self) -> list[tuple[Tensor, Tensor | None]]:
        """(weight, bias) of what stays of each module, the last one first; made again where a weight or the choice has changed."""
        kept, modules = self.at.values["kept"], [self.exit, *self.entries]
        sources = [kept, *(p for m in modules for p in m.parameters(recurse=False))]
        state: list[Any] = [(p, p._version, p.data_ptr(), p.dtype) for p in sources]
        old = self.held[0]
        if len(old) != len(state) or any(
            a[0] is not b[0] or a[1:] != b[1:] for a, b in zip(old, state, strict=True)
        ):
            with torch.no_grad():
                made = []
                for i, m in enumerate(modules):
                    weight: Any = m.weight.detach().T if is_transposed(m) else m.weight.detach()  # type: ignore[union-attr,operator]
                    bias: Any = m.bias.detach() if m.bias is not None else None  # type: ignore[union-attr,operator]
                    if i:
                        made.append((weight[kept].contiguous(), bias if bias is None else bias[kept]))
                    else:
                        made.append((weight[:, kept].contiguous(), bias))
            self.held = state, made
        return self.held[1]

    def leave(self, original: Any, x: Tensor) -> Tensor:
        """The layer that reads the units."""
        if self.narrow:
            return F.linear(x, *self.pieces()[0])
        at, ctx = self.at, self.at.ctx
        if not at.on or ctx is None or at.values["kept"].shape[-1] == self.units:
            return original(x)
        kept = at.t(ctx)["kept"].long()  # a bank holds it as floats, (rows, kept)
        stays = x.new_zeros(*kept.shape[:-1], self.units).scatter_(-1, kept, 1.0)
        stays = stays.repeat_interleave(self.width, -1)
        if stays.dim() > 1:
            stays = stays.view(len(stays), *[1] * (x.dim() - 2), -1)
        return original(at.blend(x * stays, x, ctx))


class Entering:
    """A layer that makes units."""

    def __init__(self, cutting: Cutting, index: int):
        self.cutting, self.index = cutting, index

    def forward(self, original: Any, x: Tensor) -> Tensor:
        if self.cutting.narrow:
            return F.linear(x, *self.cutting.pieces()[1 + self.index])
        return original(x)


def _alone(module: nn.Module) -> bool:
    """Whether this module's forward is its class's own but for the cut, and its weight is whole on this process."""
    chain = module.__dict__.get("forward")
    return (
        isinstance(chain, Chain)
        and len(chain.handlers) == 1
        and chain.before is None
        and (type(module) is nn.Linear or is_transposed(module))
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        and not hasattr(module.weight, "full_tensor")
    )
