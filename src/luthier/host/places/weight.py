"""Places in the weights: an additive change with an optional shortcut on activations, and trained values in a parameter's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.errors import ModelError, OptionError
from luthier.host.applicable import Reason, because, rows_share
from luthier.host.context import under_way
from luthier.host.exchange import EDITED, exchange
from luthier.host.functional import call_with, first, rowwise
from luthier.host.part import Part, T
from luthier.host.places.factored import Factors, changed, folding, usable
from luthier.host.places.remade import folded
from luthier.host.quantised import refuse_quantised
from luthier.host.sites import is_linear, is_transposed

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted
    from luthier.host.context import Context
    from luthier.host.placed import At, Placed
    from luthier.host.sites import Site

Own = Callable[[], tuple[Tensor, Tensor | None]]
"""() -> (a layer's weight at a site, (out, ...), and its bias there)."""


class Weighted(Part):
    """What weight edits and subsets share: one port per module applies all of them, in the order of attachment."""

    def check_base(self, base, sites):
        refuse_quantised(self.name, base, sites)

    def install(self, placed: Placed, adapted: Adapted) -> Iterator[Any]:
        self.check_base(adapted.base, placed.sites)
        for at in placed.ats():
            module = adapted.base.get_submodule(at.site.path)
            self.accept(module, at)
            port = adapted.ports.get(at.site.path)
            if port is None:
                port = adapted.ports[at.site.path] = Port(module)
                port.exchanged = exchange(module, port.forward, EDITED)
            port.edits.append(at)
            yield Ported(adapted, at, at.site.path)
            if self.owns_parameters:
                for path in tied(adapted.base, at.site.path):
                    yield from self._mirror(adapted, at, path)

    def _mirror(self, adapted: Adapted, at: At, path: str) -> Iterator[Any]:
        """Trained values of a tied parameter are seen by every module that shares it."""
        port = adapted.ports.get(path)
        if port is None:
            module = adapted.base.get_submodule(path)
            port = adapted.ports[path] = Port(module)
            port.exchanged = exchange(module, port.forward, EDITED)
        port.edits.append(at)
        yield Ported(adapted, at, path)

    owns_parameters: ClassVar[bool] = False

    def accept(self, module: nn.Module, at: At) -> None:
        """Refuse modules that this part cannot edit."""

    def parameters(
        self, at: At, module: nn.Module, now: Mapping[str, Tensor], ctx: Context | None
    ) -> dict[str, Tensor]:
        """The module's parameters, as it stores them, with this part folded in; `now`: as earlier parts left them."""
        raise NotImplementedError


class WeightEdit(Weighted):
    """A change of a linear weight.

    delta(weight, t) -> the change of the weight, (out, in): used to merge, to export and in checks.
    shortcut(x, y, t) -> the same on activations; x: (..., in), y: (..., out), the layer's own output.
    before(x, t) -> x, instead of a shortcut, where the change is a change of the layer's input.
    delta_bias(weight, bias, t) -> the change of the bias, (out,), or None. Without `delta` and `delta_bias` the part cannot merge.
    bias: None where the layer has none; a change then becomes its bias for as long as it is merged.
    factors(t) -> Factors of a low-rank delta, beside a shortcut: where they serve a whole batch, layer and change are one
    function (`luthier.host.places.factored`). A delta without a shortcut is folded into the weight, which is made again in the backward
    pass (`luthier.host.places.remade`), so that no changed weight is kept.
    folds: whether, beside a shortcut, W + delta is the cheaper way on a long batch, and is taken there in the same way.
    takes_start_off: `delta` itself takes an anchored start off, by `t.start`, because its change is not linear in what trains.
    """

    takes_start_off: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    delta: ClassVar[Any] = None
    delta_bias: ClassVar[Any] = None
    shortcut: ClassVar[Any] = None
    before: ClassVar[Any] = None
    factors: ClassVar[Any] = None

    def function(self, args: tuple, t: T, ctx: Context | None) -> Tensor:
        return self.apply(args[0], args[1], t)

    def accept(self, module: nn.Module, at: At) -> None:
        if not is_linear(module):
            raise because(
                ModelError(
                    f"{self.name} edits linear weights, but {at.site.name} is a {type(module).__name__}. Choose other targets, e.g. 'attention.*'."
                ),
                Reason.NOT_LINEAR,
            )

    def check_rank(self, rank: int, sites: Sequence[Site]) -> None:
        """Refuse a rank above the smaller side of a weight."""
        for s in sites:
            if rank > min(s.in_features, s.out_features):
                raise OptionError(
                    f"{self.name}: rank={rank} is above min(in, out)={min(s.in_features, s.out_features)} at {s.name}. Choose a smaller rank."
                )

    def apply(
        self, x: Tensor, y: Tensor, t: T, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Activations with the change; tensors with a leading row dimension serve each row with its own.

        weight, bias: the layer's own at this site, (out, in) and (out,), for parts without a shortcut.
        """
        if self.shortcut is not None:
            if any(v.dim() > 2 for v in t.values()) and x.dim() != 3:
                # broadcasting (rows, r, in) against (rows, in) or 4-D activations is silently wrong
                flat = x.reshape(len(x), -1, x.shape[-1]), y.reshape(len(y), -1, y.shape[-1])
                return self.shortcut(*flat, t).reshape(y.shape)
            return self.shortcut(x, y, t)
        d = self.delta(weight, t)
        change = (
            (x.reshape(len(x), -1, x.shape[-1]) @ d.mT).reshape(y.shape) if d.dim() > 2 else F.linear(x, d)
        )
        added = self.delta_bias(weight, bias, t) if self.delta_bias is not None else None
        return y + change if added is None else y + change + rowwise(added, y)

    def applied(self, module: nn.Module, own: Own, x: Tensor, y: Tensor, t: T) -> Tensor:
        """`apply` at a module, for places that need the module itself; own(): its weight and bias at the site."""
        return self.apply(x, y, t, *(() if self.shortcut is not None else own()))

    def change(self, at: At, weight: Tensor, t: T, start: T | None) -> Tensor:
        """What is added to the module's whole weight, as (out, ...): `delta` with its coefficient, less that of an anchored start."""
        rows = slice(*at.site.rows) if at.site.rows else slice(None)
        change = self.delta(weight[rows], t)
        if start is not None and not self.takes_start_off:
            change = change - self.delta(weight[rows], start)
        if change.dim() > weight.dim():  # made for one row
            change = change.squeeze(0)
        return _of_all(at, at.placed.scale * change, len(weight))

    def change_bias(
        self, at: At, weight: Tensor, bias: Tensor | None, t: T, start: T | None
    ) -> Tensor | None:
        """What is added to the module's whole bias, (out,), as `change`; weight: the whole one, before this part's change."""
        rows = slice(*at.site.rows) if at.site.rows else slice(None)
        own = None if bias is None else bias[rows]
        change = self.delta_bias(weight[rows], own, t)
        if change is None:
            return None
        if start is not None and not self.takes_start_off:
            change = change - self.delta_bias(weight[rows], own, start)
        return _of_all(at, at.placed.scale * (change.squeeze(0) if change.dim() > 1 else change), len(weight))

    def parameters(
        self, at: At, module: nn.Module, now: Mapping[str, Tensor], ctx: Context | None
    ) -> dict[str, Tensor]:
        weight, bias, site, part = now["weight"], now.get("bias"), at.site, at.part
        own = weight.T if site.transposed else weight
        exact = _exact(part, weight)
        t = at.t(ctx, exact)
        start = at.t(ctx, exact, at.anchor) if part.start.anchored else None
        out = dict(now)
        if self.delta is not None:
            change = self.change(at, own.to(exact), t, start).to(weight.dtype)
            out["weight"] = weight + (change.T if site.transposed else change)
        if self.delta_bias is not None:
            added = self.change_bias(at, own.to(exact), bias, t, start)
            if added is not None and bias is None and "bias" not in module._parameters:
                raise ModelError(
                    f"{self.name} changes the bias, but {site.name} has no place for one. Choose other targets."
                )
            if added is not None:
                out["bias"] = added.to(weight.dtype) if bias is None else bias + added.to(bias.dtype)
        return out


class Subset(Weighted):
    """Values that train in the place of a module's own parameters, beside them: the base is untouched.

    values(parameters, t) -> {name: new value} for the parameters that change. A file holds the values, or for sparse
    methods the entries; merging writes them.
    """

    owns_parameters: ClassVar[bool] = True

    def values(self, parameters: Mapping[str, Tensor], t: T) -> Mapping[str, Tensor]:
        raise NotImplementedError

    def parameters(
        self, at: At, module: nn.Module, now: Mapping[str, Tensor], ctx: Context | None
    ) -> dict[str, Tensor]:
        out = dict(now)
        t = at.t(ctx)
        for name, value in self.values(now, t).items():
            if name not in now:
                continue  # a module that shares only some of these parameters
            old = now[name]
            value = value.to(old.dtype)
            out[name] = value if at.placed.scale == 1.0 else old + at.placed.scale * (value - old)
        return out


class Port:
    """Everything that is attached to the weights of one module, applied around its forward."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.exchanged: Any = None
        self.edits: list[At] = []
        self.kept: dict[str, Mapping[str, Tensor | None]] = {}
        """{merged adaptation: the parameters that its merge replaced, None for a bias that it made}, the first merge first."""

    def own(self, unfolded: bool) -> dict[str, Tensor]:
        """The module's own parameters; unfolded: without what is merged into them."""
        now: dict[str, Tensor | None] = dict(self.module.named_parameters(recurse=False))
        for replaced in reversed(self.kept.values()) if unfolded else ():
            now.update(replaced)
        return {name: p for name, p in now.items() if p is not None}

    def belongs_to_rows(self, at: At) -> None:
        if rows_share(at.site):
            raise because(
                ModelError(
                    f"{at.part.name} changes {at.site.name}, which gives the same values for all rows: rows of several adaptations cannot share a batch. Give them separate batches."
                ),
                Reason.ROWS_SHARE,
            )

    def unmerged(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward without what is merged into it."""
        return call_with(self.module, self.own(True), args, kwargs)

    def changed(self, edits: list[tuple[At, Context]], unfolded: bool, args: tuple, kwargs: dict) -> Any:
        """The module's forward with the parameters that these edits make."""
        now = self.own(unfolded)
        for at, ctx in edits:
            now = at.part.parameters(at, self.module, now, ctx)  # type: ignore[attr-defined]
        return call_with(self.module, now, args, kwargs)

    def forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        edits = under_way(self.edits)
        on = [(a, c) for a, c in edits if a.placed.owner in c.active and a.placed.owner not in c.folded]
        unfolded = bool(self.kept) and any(c.unfolded for _, c in edits)
        if unfolded:
            original = self.unmerged
        if not on:
            return original(*args, **kwargs)
        for way in (_factored, _folded):
            if (y := way(self.module, on, original, args, kwargs)) is not None:
                return y
        whole = [(a, c) for a, c in on if _folds(a) and a.placed.owner not in c.rows]
        if whole:  # the parameters change anyway: changes of the input are folded in too
            whole = [(a, c) for a, c in on if (_folds(a) or _turns(a)) and a.placed.owner not in c.rows]
        if whole:
            y = _folded(self.module, whole, original, args, kwargs)
            if y is None:
                y = self.changed(whole, unfolded, args, kwargs)
        else:
            for at, ctx in on:
                if _turns(at) and not at.site.rows:
                    x = first(args, kwargs)
                    x = at.blend(at.part.before(x, at.t(ctx, x.dtype)), x, ctx)  # type: ignore[attr-defined]
                    args, kwargs = (x, *args[1:]), kwargs if args else {}
            y = original(*args, **kwargs)
        in_rows = [(a, c) for a, c in on if a.placed.owner in c.rows and (_folds(a) or (whole and _turns(a)))]
        for owner in dict.fromkeys(a.placed.owner for a, _ in in_rows):
            mine = [(a, c) for a, c in in_rows if a.placed.owner == owner]
            y = self.in_rows(mine, y, unfolded, args, kwargs)
        for at, ctx in on:
            if not whole and _turns(at):
                if at.site.rows:
                    x = first(args, kwargs)
                    y = _turned_slice(at, ctx, x, y, self.own(unfolded)["weight"])
            elif not _folds(at) and not _turns(at):
                x = first(args, kwargs)
                y = _shortcut(at, ctx, self.module, partial(self.own, unfolded), x, y)
        return y

    def in_rows(
        self, mine: list[tuple[At, Context]], y: Tensor, unfolded: bool, args: tuple, kwargs: dict
    ) -> Tensor:
        """`y`, and in the rows of one adaptation what the module gives with all of its changes: both are computed."""
        for at, _ in mine:
            self.belongs_to_rows(at)
        at, ctx = mine[0]
        new = self.changed(mine, unfolded, args, kwargs)
        return torch.where(ctx.rows[at.placed.owner].view(-1, *[1] * (new.dim() - 1)), new, y)


class Ported:
    """Takes one part's site out of its port again."""

    def __init__(self, adapted: Adapted, at: At, path: str):
        self.adapted, self.at, self.path = adapted, at, path

    def remove(self) -> None:
        port = self.adapted.ports[self.path]
        port.edits = [a for a in port.edits if a is not self.at]
        if not port.edits:
            port.exchanged.remove()
            del self.adapted.ports[self.path]


def tied(base: nn.Module, path: str) -> list[str]:
    """Paths of the other modules that hold one of this module's parameters."""
    module = base.get_submodule(path)
    own = {id(p) for p in module._parameters.values() if p is not None}
    return [
        n
        for n, m in base.named_modules()
        if m is not module and any(id(p) in own for p in m._parameters.values() if p is not None)
    ]


def _folds(at: At) -> bool:
    """Whether the part works on the parameters themselves rather than on activations."""
    part: Any = at.part
    return isinstance(part, Subset) or (
        part.shortcut is None and part.before is None and not part.source.by_row
    )


def _turns(at: At) -> bool:
    """Whether the part changes what the layer receives."""
    return getattr(at.part, "before", None) is not None


def _turned_slice(at: At, ctx: Context, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """A changed input where only a slice of the layer's outputs is to see it: what that adds to the slice."""
    begin, end = at.site.rows  # type: ignore[misc]
    own = (weight.T if at.site.transposed else weight)[begin:end]
    added = F.linear(at.part.before(x, at.t(ctx, x.dtype)) - x, own)
    now = y[..., begin:end]
    return torch.cat([y[..., :begin], at.blend(now + added, now, ctx), y[..., end:]], -1)


def _factored(
    module: nn.Module, on: list[tuple[At, Context]], original: Any, args: tuple, kwargs: dict
) -> Tensor | None:
    """The layer with changes that are all low-rank and serve the whole batch; None where they are something else."""
    if any(getattr(a.part, "factors", None) is None or a.placed.owner in c.rows for a, c in on):
        return None
    if any(a.part.source.by_row for a, _ in on):
        return None
    x = first(args, kwargs)
    if not usable(module, original, x):
        return None
    given: list[tuple[Factors, tuple[int, int] | None, float]] = []
    for at, ctx in on:
        f = at.part.factors(at.t(ctx))
        if at.part.start.anchored:
            f = f.less(at.part.factors(at.t(ctx, values=at.anchor)))
        given.append((f, at.site.rows, at.placed.scale))
    return changed(module, x, given)


def _folded(
    module: nn.Module, on: list[tuple[At, Context]], original: Any, args: tuple, kwargs: dict
) -> Tensor | None:
    """The layer with W + delta of changes that all fold, and serve the whole batch; None where they are something else, and where
    each has a shortcut that costs less."""
    if any(not _dense(a) or a.placed.owner in c.rows for a, c in on):
        return None
    x = first(args, kwargs)
    if not usable(module, original, x):
        return None
    own: Any = module
    weight = own.weight.T if is_transposed(module) else own.weight
    if not any(_folds(a) for a, _ in on) and not folding(x, weight):
        return None
    each = [Folding(at, ctx, _exact(at.part, weight)) for at, ctx in on]
    return folded(Foldings(each), x, weight, own.bias, [t for f in each for t in f.tensors])


class Folding:
    """One part's change of a weight and its bias as a function of its tensors."""

    def __init__(self, at: At, ctx: Context, dtype: torch.dtype):
        self.at, self.t, self.dtype = at, at.t(ctx, dtype), dtype
        self.start = at.t(ctx, dtype, at.anchor) if at.part.start.anchored else None
        self.tensors = [*self.t.values(), *(self.start or {}).values()]

    def __call__(
        self, weight: Tensor, bias: Tensor | None, tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        part, t, start = self.at.part, _like(self.t, tensors), None
        if self.start is not None:
            t.start = start = _like(self.start, tensors[len(self.t) :])
        own = weight.to(self.dtype)
        added = None if part.delta_bias is None else part.change_bias(self.at, own, bias, t, start)
        if added is not None:
            bias = added.to(weight.dtype) if bias is None else bias + added.to(bias.dtype)
        return weight + part.change(self.at, own, t, start).to(weight.dtype), bias


class Foldings:
    """A weight and a bias with their changes, one after the other, as a function of their tensors."""

    def __init__(self, each: list[Folding]):
        self.each = each

    def __call__(self, weight: Tensor, bias: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        for f in self.each:
            weight, bias = f(weight, bias, tensors[: len(f.tensors)])
            tensors = tensors[len(f.tensors) :]
        return weight, bias


def _like(t: T, tensors: tuple[Tensor, ...]) -> T:
    made = T(zip(t, tensors))
    made.layout, made.training, made.members = t.layout, t.training, t.members
    return made


def _of_all(at: At, change: Tensor, outputs: int) -> Tensor:
    """A change of a site's outputs as one of all of its module's: nothing at the others."""
    if not at.site.rows:
        return change
    full = change.new_zeros(outputs, *change.shape[1:])
    full[slice(*at.site.rows)] = change
    return full


def _exact(part: Any, weight: Tensor) -> torch.dtype:
    """What a change is made in. A start is taken off in full precision: what is left of two rounded products would be mostly rounding."""
    return torch.float32 if part.start.anchored and weight.itemsize < 4 else weight.dtype


def _dense(at: At) -> bool:
    """Whether W + delta is the way to take on a long batch."""
    part: Any = at.part
    return (
        isinstance(part, WeightEdit)
        and part.delta is not None
        and part.before is None
        and (part.folds or part.shortcut is None)
        and not part.source.by_row
        and not at.placed.members
    )


def _shortcut(
    at: At,
    ctx: Context,
    module: nn.Module,
    parameters: Callable[[], Mapping[str, Tensor]],
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """y with one part's change. parameters: the module's own, as it stores them."""
    part: Any = at.part
    own, rows = partial(_at_site, at, parameters), at.site.rows
    old = y[..., rows[0] : rows[1]] if rows else y
    new = part.applied(module, own, x, old, at.t(ctx, x.dtype))
    if part.start.anchored:  # old + (d - d0): exactly `old` at the start
        nothing = torch.zeros_like(old)
        d = part.applied(module, own, x, nothing, at.t(ctx, x.dtype))
        new = old + (d - part.applied(module, own, x, nothing, at.t(ctx, x.dtype, at.anchor)))
    new = at.blend(new, old, ctx)
    if rows is None:
        return new
    return torch.cat([y[..., : rows[0]], new, y[..., rows[1] :]], -1)


def _at_site(at: At, parameters: Callable[[], Mapping[str, Tensor]]) -> tuple[Tensor, Tensor | None]:
    """The layer's weight, (out, ...), and its bias at a site."""
    given, rows = parameters(), slice(*at.site.rows) if at.site.rows else slice(None)
    bias = given.get("bias")
    weight = given["weight"].T if at.site.transposed else given["weight"]
    return weight[rows], None if bias is None else bias[rows]
