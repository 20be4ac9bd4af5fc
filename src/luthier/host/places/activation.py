"""A place in the activations: an edit of what a module returns or receives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from luthier.errors import ModelError, SiteError
from luthier.host.applicable import Reason, because
from luthier.host.bridge import bridged
from luthier.host.functional import first
from luthier.host.part import Part, T

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted
    from luthier.host.context import Context
    from luthier.host.placed import At, Placed
    from luthier.host.sites import Site


class ActivationEdit(Part):
    """edit(h, t, ctx) -> h at a module's exit (or `side = "entry"`). h: (rows, tokens, width), or (rows, width).

    `reads`: the role of another site in the same block whose *input* the edit wants, as `t.x` (parallel adapters).
    `sees_attention`: at a projection that closes an attention, the edit wants what that attention read (`t.seen`, a
    `luthier.host.bridge.Attended`) and the projection's own weight, (out, in), and bias or None (`t.weight`, `t.bias`).
    """

    side: ClassVar[str] = "exit"
    reads: ClassVar[str] = ""
    sees_attention: ClassVar[bool] = False

    def edit(self, h: Tensor, t: T, ctx: Context) -> Tensor:
        raise NotImplementedError

    def function(self, args: tuple, t: T, ctx: Context) -> Tensor:
        return self.edit(args[0], t, ctx)

    def install(self, placed: Placed, adapted: Adapted) -> Iterator[Any]:
        for at in placed.ats():
            module = adapted.base.get_submodule(at.site.path)
            hooks = ActivationHooks(at)
            if self.sees_attention:
                attention = self._attention(at.site, adapted)
                hooks.sees = attention.path
                yield from bridged([(at, attention)], adapted)
            if self.reads:
                partner = adapted.structure.partner(at.site, self.reads)
                if partner is None:
                    raise because(
                        SiteError(
                            f"{self.name} reads the input of {self.reads!r}, which the block of {at.site.name} does not have."
                        ),
                        Reason.NO_PARTNER,
                    )
                hooks.reads = partner.path
                yield adapted.base.get_submodule(partner.path).register_forward_pre_hook(
                    hooks.remember, with_kwargs=True
                )
            if self.side == "entry":
                yield module.register_forward_pre_hook(hooks.entry, with_kwargs=True)
            else:
                yield module.register_forward_hook(hooks.exit, with_kwargs=True)

    def _attention(self, site: Site, adapted: Adapted) -> Site:
        """The attention that a projection closes."""
        role, _, what = site.role.rpartition(".")
        found = adapted.structure.partner(site, role) if what == "output" else None
        if found is None:
            raise because(
                SiteError(
                    f"{self.name} sees the attention that a site closes, which the block of {site.name} does not have there. "
                    "Choose targets=*attention.output."
                ),
                Reason.NO_PARTNER,
            )
        return found


class ActivationHooks:
    """Bound methods serve as hooks, because they copy and pickle with the part."""

    def __init__(self, at: At):
        self.at, self.reads, self.sees = at, "", ""

    @property
    def on(self) -> bool:
        """Towers may share one embedding: an edit of it belongs to the tower of its site."""
        at = self.at
        if not at.on:
            return False
        elsewhere = at.ctx.tower not in ("", at.site.tower)  # type: ignore[union-attr]
        return not (elsewhere and at.site.role.endswith("embedding"))

    def remember(self, module: Any, args: tuple, kwargs: dict) -> None:
        if self.at.on:
            self.at.ctx.inputs[self.reads] = first(args, kwargs)  # type: ignore[union-attr]

    def exit(self, module: Any, args: tuple, kwargs: dict, out: Any) -> Any:
        if not self.on:
            return None
        h = self._edited(out[0] if isinstance(out, tuple) else out, module)
        return (h, *out[1:]) if isinstance(out, tuple) else h

    def entry(self, module: Any, args: tuple, kwargs: dict) -> Any:
        if not self.on:
            return None
        h = self._edited(first(args, kwargs), module)
        if args:
            return (h, *args[1:]), kwargs
        key = next(iter(kwargs))
        return args, {**kwargs, key: h}

    def _edited(self, h: Tensor, module: Any) -> Tensor:
        at, ctx = self.at, self.at.ctx
        assert ctx is not None
        rows = at.site.rows
        own = h[..., rows[0] : rows[1]] if rows else h
        t = at.t(ctx, h.dtype)
        part: ActivationEdit = at.part  # type: ignore[assignment]
        given: dict[str, Any] = {"x": ctx.inputs[self.reads]} if self.reads else {}
        if self.sees:
            path, seen = ctx.attended or ("", None)
            if path != self.sees:
                raise ModelError(
                    f"{part.name}: the attention before {at.site.name} did not go through Transformers' attention interface in this forward. "
                    "Choose an adapter instead."
                )
            weight = module.weight.T if at.site.transposed else module.weight
            given |= {"seen": seen, "weight": weight, "bias": module.bias}
        t.update(given)
        new = part.edit(own, t, ctx)
        if part.start.anchored:
            t0 = at.t(ctx, h.dtype, at.anchor)
            t0.update(given)
            new = own + (new - part.edit(own, t0, ctx))
        new = at.blend(new, own, ctx)
        if rows is None:
            return new
        import torch

        return torch.cat([h[..., : rows[0]], new, h[..., rows[1] :]], -1)
