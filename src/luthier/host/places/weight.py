"""Places in the weights: an additive change with an optional shortcut on activations, and trained values in a parameter's place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.errors import ModelError, OptionError
from luthier.host.applicable import Reason, because, rows_share
from luthier.host.exchange import EDITED, exchange
from luthier.host.functional import call_with
from luthier.host.part import Part, T
from luthier.host.places.factored import Factors, changed, folding, usable
from luthier.host.places.remade import folded
from luthier.host.sites import is_linear, is_transposed

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted
    from luthier.host.context import Context
    from luthier.host.placed import At, Placed
    from luthier.host.sites import Site


class Weighted(Part):
    """What weight edits and subsets share: one port per module applies all of them, in the order of attachment."""

    def install(self, placed: Placed, adapted: Adapted) -> Iterator[Any]:
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
    delta_bias(weight, bias, t) -> the change of the bias, (out,), also where there is none (bias=None): a bias is then made, which
    merging gives to the layer; None for no change. Without `delta` and `delta_bias` the part cannot merge.
    factors(t) -> Factors of a low-rank delta, beside a shortcut: where they serve a whole batch, layer and change are one
    function (`luthier.host.places.factored`).
    folds: whether, beside a shortcut, W + delta is the cheaper way on a long batch; the layer and its change are then one function
    too, which makes the weight again in the backward pass (`luthier.host.places.remade`).
    """

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

    def apply(self, x: Tensor, y: Tensor, t: T) -> Tensor:
        """Activations with the change; tensors with a leading row dimension serve each row with its own."""
        if self.shortcut is not None:
            if any(v.dim() > 2 for v in t.values()) and x.dim() != 3:
                # broadcasting (rows, r, in) against (rows, in) or 4-D activations is silently wrong
                flat = x.reshape(len(x), -1, x.shape[-1]), y.reshape(len(y), -1, y.shape[-1])
                return self.shortcut(*flat, t).reshape(y.shape)
            return self.shortcut(x, y, t)
        d = self.delta(None, t)
        change = (
            (x.reshape(len(x), -1, x.shape[-1]) @ d.mT).reshape(y.shape) if d.dim() > 2 else F.linear(x, d)
        )
        bias = self.delta_bias(None, None, t) if self.delta_bias is not None else None
        return y + change if bias is None else y + change + bias

    def change(self, at: At, weight: Tensor, t: T, start: T | None) -> Tensor:
        """What is added to the module's whole weight, (out, in): `delta` with its coefficient, less that of an anchored start."""
        rows = slice(*at.site.rows) if at.site.rows else slice(None)
        change = self.delta(weight[rows], t)
        if start is not None:
            change = change - self.delta(weight[rows], start)
        change = at.placed.scale * change.squeeze(0) if change.dim() > 2 else at.placed.scale * change
        if at.site.rows:
            full = torch.zeros_like(weight)
            full[rows] = change
            change = full
        return change  # type: ignore[no-any-return]

    def parameters(
        self, at: At, module: nn.Module, now: Mapping[str, Tensor], ctx: Context | None
    ) -> dict[str, Tensor]:
        weight, bias, site, part = now["weight"], now.get("bias"), at.site, at.part
        own = weight.T if site.transposed else weight
        rows = slice(*site.rows) if site.rows else slice(None)
        t = at.t(ctx, weight.dtype)
        out = dict(now)
        if self.delta is not None:
            start = at.t(ctx, weight.dtype, at.anchor) if part.start.anchored else None
            change = self.change(at, own, t, start)
            out["weight"] = weight + (change.T if site.transposed else change)
        if self.delta_bias is not None:
            change = self.delta_bias(own[rows], None if bias is None else bias[rows], t)
            if change is not None and bias is None:
                if "bias" not in module._parameters:
                    raise ModelError(
                        f"{self.name} changes the bias, but {site.name} can have none. Choose other targets."
                    )
                bias = out["bias"] = own.new_zeros(len(own))
            if change is not None and bias is not None:
                if part.start.anchored:
                    change = change - self.delta_bias(own[rows], bias[rows], at.t(ctx, bias.dtype, at.anchor))
                full = torch.zeros_like(bias)
                full[rows] = at.placed.scale * change
                out["bias"] = bias + full
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
        self.kept: dict[str, Mapping[str, Any]] = {}
        """{merged adaptation: the parameters that its merge replaced, None for a bias that it made}, the first merge first."""

    def own(self, unfolded: bool) -> dict[str, Any]:
        """The module's own parameters; unfolded: without what is merged into them (None for a bias that merging made)."""
        now: dict[str, Any] = dict(self.module.named_parameters(recurse=False))
        for replaced in reversed(self.kept.values()) if unfolded else ():
            now.update(replaced)
        return now

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

    def forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        on = [
            (a, c)
            for a in self.edits
            if (c := a.ctx) is not None and a.placed.owner in c.active and a.placed.owner not in c.folded
        ]
        unfolded = bool(self.kept) and any(c.unfolded for a in self.edits if (c := a.ctx) is not None)
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
            now = self.own(unfolded)
            for at, ctx in whole:
                now = at.part.parameters(at, self.module, now, ctx)  # type: ignore[attr-defined]
            y = call_with(self.module, now, args, kwargs)
        else:
            for at, ctx in on:
                if _turns(at) and not at.site.rows:
                    x = args[0] if args else next(iter(kwargs.values()))
                    x = at.blend(at.part.before(x, at.t(ctx, x.dtype)), x, ctx)  # type: ignore[attr-defined]
                    args, kwargs = (x, *args[1:]), kwargs if args else {}
            y = original(*args, **kwargs)
        for at, ctx in on:
            if not whole and _turns(at):
                if at.site.rows:
                    x = args[0] if args else next(iter(kwargs.values()))
                    y = _turned_slice(at, ctx, x, y, self.own(unfolded)["weight"])
            elif _folds(at) or _turns(at):
                if at.placed.owner in ctx.rows:  # only some rows see other weights: both are computed
                    self.belongs_to_rows(at)
                    now = at.part.parameters(at, self.module, self.own(unfolded), ctx)  # type: ignore[attr-defined]
                    y = at.blend(call_with(self.module, now, args, kwargs), y, ctx)
            else:
                y = _shortcut(at, ctx, args[0] if args else next(iter(kwargs.values())), y)
        return y


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
    first, last = at.site.rows  # type: ignore[misc]
    own = (weight.T if at.site.transposed else weight)[first:last]
    added = F.linear(at.part.before(x, at.t(ctx, x.dtype)) - x, own)
    now = y[..., first:last]
    return torch.cat([y[..., :first], at.blend(now + added, now, ctx), y[..., last:]], -1)


def _factored(
    module: nn.Module, on: list[tuple[At, Context]], original: Any, args: tuple, kwargs: dict
) -> Tensor | None:
    """The layer with changes that are all low-rank and serve the whole batch; None where they are something else."""
    if any(getattr(a.part, "factors", None) is None or a.placed.owner in c.rows for a, c in on):
        return None
    if any(a.part.source.by_row for a, _ in on):
        return None
    x = args[0] if args else next(iter(kwargs.values()))
    if not usable(module, original, x):
        return None
    given: list[tuple[Factors, Factors | None, tuple[int, int] | None, float]] = []
    for at, ctx in on:
        start = at.part.factors(at.t(ctx, values=at.anchor)) if at.part.start.anchored else None
        given.append((at.part.factors(at.t(ctx)), start, at.site.rows, at.placed.scale))
    return changed(module, x, given)


def _folded(
    module: nn.Module, on: list[tuple[At, Context]], original: Any, args: tuple, kwargs: dict
) -> Tensor | None:
    """The layer with W + delta of changes that all fold, and serve the whole batch; None where they are something else."""
    if any(not _dense(a) or a.placed.owner in c.rows for a, c in on):
        return None
    x = args[0] if args else next(iter(kwargs.values()))
    if not usable(module, original, x):
        return None
    own: Any = module
    weight = own.weight.T if is_transposed(module) else own.weight
    if not folding(x, weight):
        return None
    each = [Folding(at, ctx, x.dtype) for at, ctx in on]
    return folded(Foldings(each), x, weight, own.bias, [t for f in each for t in f.tensors])


class Folding:
    """One part's change of a weight as a function of its tensors."""

    def __init__(self, at: At, ctx: Context, dtype: torch.dtype):
        self.at, self.t = at, at.t(ctx, dtype)
        self.start = at.t(ctx, dtype, at.anchor) if at.part.start.anchored else None
        self.tensors = [*self.t.values(), *(self.start or {}).values()]

    def __call__(self, weight: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        start = None if self.start is None else _like(self.start, tensors[len(self.t) :])
        return weight + self.at.part.change(self.at, weight, _like(self.t, tensors), start)  # type: ignore[no-any-return]


class Foldings:
    """A weight with its changes, one after the other, as a function of their tensors."""

    def __init__(self, each: list[Folding]):
        self.each = each

    def __call__(self, weight: Tensor, *tensors: Tensor) -> Tensor:
        for f in self.each:
            weight, tensors = f(weight, tensors[: len(f.tensors)]), tensors[len(f.tensors) :]
        return weight


def _like(t: T, tensors: tuple[Tensor, ...]) -> T:
    made = T(zip(t, tensors))
    made.layout, made.training, made.members = t.layout, t.training, t.members
    return made


def _dense(at: At) -> bool:
    """Whether W + delta is the way to take on a long batch."""
    part: Any = at.part
    return (
        isinstance(part, WeightEdit)
        and part.delta is not None
        and part.delta_bias is None
        and part.before is None
        and (part.folds or part.shortcut is None)
        and not part.source.by_row
        and not at.placed.members
    )


def _shortcut(at: At, ctx: Context, x: Tensor, y: Tensor) -> Tensor:
    part, rows = at.part, at.site.rows
    own = y[..., rows[0] : rows[1]] if rows else y
    new = part.apply(x, own, at.t(ctx, x.dtype))  # type: ignore[attr-defined]
    if part.start.anchored:  # own + (d - d0): exactly `own` at the start
        nothing = torch.zeros_like(own)
        d = part.apply(x, nothing, at.t(ctx, x.dtype)) - part.apply(x, nothing, at.t(ctx, x.dtype, at.anchor))  # type: ignore[attr-defined]
        new = own + d
    new = at.blend(new, own, ctx)
    if rows is None:
        return new
    return torch.cat([y[..., : rows[0]], new, y[..., rows[1] :]], -1)
