"""A part at its sites: the tensors, and what hooks need to know of the forward that is under way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from luthier.errors import SiteError
from luthier.host.context import CURRENT, Context
from luthier.host.part import Free, Layout, Part, Spec, T, spec
from luthier.host.sites import Site

Fill = Callable[["Placed", Site | None, Mapping[str, Spec]], Mapping[str, Tensor]]


class At(nn.Module):
    """One part at one site: its tensors, and what hooks need to know of the forward that is under way."""

    placed: Placed
    site: Site
    layout: Layout

    def __init__(self, placed: Placed, site: Site, layout: Layout):
        super().__init__()
        self.__dict__["placed"] = placed  # a back reference, not a child
        self.site, self.layout = site, layout
        self.values, self.anchor = nn.ParameterDict(), nn.ParameterDict()

    @property
    def part(self) -> Any:
        """The part, with the methods of its place."""
        return self.placed.part

    @property
    def key(self) -> str:
        return site_key(self.site.name)

    @property
    def ctx(self) -> Context | None:
        """The context of this model's forward under way, if any."""
        ctx = CURRENT.get()
        return ctx if ctx is not None and ctx.wire is self.placed.wire else None

    @property
    def on(self) -> bool:
        ctx = self.ctx
        return ctx is not None and self.placed.owner in ctx.active

    def blend(self, new: Tensor, old: Tensor, ctx: Context) -> Tensor:
        """`new` with this adaptation's coefficient, and only in the rows that it serves."""
        if self.placed.scale != 1.0:
            new = old + self.placed.scale * (new - old)
        rows = ctx.rows.get(self.placed.owner)
        return new if rows is None else torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)

    def made(
        self, ctx: Context | None, prepared: Any, values: Any = None, *, training: bool = False
    ) -> Mapping[str, Tensor]:
        """What the source makes of `values` (None: this site's own) and the shared tensors; prepared: `Placed.prepare`."""
        raw = T(self.placed.common)
        raw.update(self.values if values is None else values)
        raw.layout, raw.training = self.layout, training
        return self.part.source.make(self.part, self.site, raw, ctx, prepared)

    def t(
        self,
        ctx: Context | None,
        dtype: torch.dtype | None = None,
        values: Any = None,
    ) -> T:
        """The tensors that the part reads: made by its source, cast to the activation's dtype (the small thing is cast).

        What a seed makes once for all sites is not small: a part casts it where it uses it, so that no cast is kept.
        """
        prepared = ctx.made.get(self.placed.key) if ctx else None
        t = T(self.made(ctx, prepared, values, training=self.placed.training))
        if dtype is not None:
            for k, v in t.items():
                if v.dtype != dtype and v.is_floating_point() and k not in self.placed.fixed:
                    t[k] = v.to(dtype)
        t.layout, t.training = self.layout, self.placed.training
        if values is None and len(self.anchor) and getattr(self.part, "takes_start_off", False):
            t.start = self.t(ctx, dtype, self.anchor)
        t.members = [Member(cast(At, m.at[self.key]), dtype) for m in self.placed.members if self.key in m.at]
        return t


class Member:
    """Another adaptation at the same site, as a composition sees it: `member(*args)` does what it does there."""

    def __init__(self, at: At, dtype: torch.dtype | None):
        self.at, self.dtype = at, dtype

    def __call__(self, *args: Any) -> Any:
        ctx = self.at.ctx
        return self.at.part.function(args, self.t, ctx)  # type: ignore[attr-defined]

    @property
    def t(self) -> T:
        return self.at.t(self.at.ctx, self.dtype)

    @property
    def network(self) -> Any:
        """What it built for the tower of this site."""
        return self.at.placed.network_of(self.at.site.tower)


class Placed(nn.Module):
    """One part at all its sites."""

    def __init__(self, part: Part, sites: Sequence[Site], layouts: Mapping[str, Layout], key: str):
        super().__init__()
        self.part, self.sites, self.key = part, list(sites), key
        self.common, self.at = nn.ParameterDict(), nn.ModuleDict()
        self.network: nn.Module | None = None
        self.members: list[Placed] = []
        self.__dict__["wire"] = None
        self.owner, self.scale = "", 1.0
        self.specs: dict[str, Spec] = {}
        for s in sites:
            self.at[site_key(s.name)] = At(self, s, layouts[s.name])

    def __deepcopy__(self, memo: dict) -> Placed:
        """At's back references are plain attributes: they are set anew on the copy."""
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        for at in new.at.values():
            at.__dict__["placed"] = new
        return new

    def wanted(self) -> dict[str, dict[str, Spec]]:
        """{site: what the part wants there}."""
        return {
            a.site.name: {k: spec(v) for k, v in self.part.tensors(a.site, a.layout).items()}
            for a in self.ats()
        }

    def wanted_once(self) -> dict[str, dict[str, Spec]]:
        """`wanted`, for sources that prepare something; the plain source does not look at it."""
        return {} if type(self.part.source) is Free else self.wanted()

    def prepare(self, ctx: Context | None) -> Any:
        """What the source makes once for all sites of a forward. ctx: None where there is no forward (settling, export)."""
        return self.part.source.prepare(self.part, T(self.common), self.wanted_once(), ctx)

    def network_of(self, tower: str) -> Any:
        """What the part built for one tower; None: it has no network."""
        whole = self.network
        return whole[tower] if isinstance(whole, nn.ModuleDict) and tower in whole else whole

    def ats(self) -> list[At]:
        return list(self.at.values())  # type: ignore[arg-type]

    def plan(self) -> Iterator[tuple[At | None, dict[str, Spec]]]:
        """Everything to lay out: (None, shared specs), then (site, its specs)."""
        wanted = self.wanted()
        source = self.part.source
        shared = {**self.part.shared(self.sites), **source.shared(self.part, wanted)}
        yield None, {k: spec(v) for k, v in shared.items()}
        for a in self.ats():
            kept = source.specs(self.part, a.site, a.layout, wanted[a.site.name])
            yield a, {k: spec(v) for k, v in kept.items()}

    def allocate(self, fill: Fill) -> None:
        """Lay out every tensor with the values of `fill(placed, site or None, specs)`."""
        self.specs = {}
        for at, specs in self.plan():
            into = self.common if at is None else at.values
            values = dict(fill(self, at.site if at else None, specs)) if specs else {}
            if set(values) != set(specs):
                raise SiteError(
                    f"{self.part.name}: tensors {sorted(set(values) ^ set(specs))} are missing or unknown."
                )
            old = list(into.keys())
            for k in old:
                del into[k]
            for k, v in values.items():
                if tuple(v.shape) != tuple(specs[k].shape):
                    where = at.site.name if at else "shared"
                    raise SiteError(
                        f"{self.part.name} at {where}: {k} has shape {tuple(v.shape)}, expected {tuple(specs[k].shape)}."
                    )
                floating = specs[k].dtype.is_floating_point
                # laid out as a file's: the strides of a decomposition would round otherwise once resumed
                v = v.detach().to(specs[k].dtype).clone(memory_format=torch.contiguous_format)
                into[k] = nn.Parameter(v, requires_grad=specs[k].trained and floating)
                self.specs[f"common.{k}" if at is None else f"at.{at.key}.values.{k}"] = specs[k]._replace(
                    start=None, of_weight=None
                )
            if at is not None and self._anchored():
                at.anchor = nn.ParameterDict(
                    {k: nn.Parameter(p.detach().clone(), requires_grad=False) for k, p in at.values.items()}
                )

    @property
    def fixed(self) -> frozenset[str]:
        """Tensors shared by all sites that a seed makes and no file holds."""
        return frozenset(k for k in self.common if not self.specs[f"common.{k}"].stored)

    def _anchored(self) -> bool:
        return bool(getattr(self.part.start, "anchored", False))


def site_key(name: str) -> str:
    """A site's name as a key of a ModuleDict, which allows no dots."""
    return name.replace(".", "/")
