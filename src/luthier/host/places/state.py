"""The place around the state of a selective scan: what is read from it besides, and what it is before the first token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from luthier.errors import ModelError, SiteError
from luthier.host.applicable import Reason, because
from luthier.host.exchange import EDITED, exchange
from luthier.host.part import Part, T
from luthier.host.sites import Site

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted
    from luthier.host.context import Context
    from luthier.host.placed import At, Placed

MODULES = frozenset({"in_proj", "conv1d", "x_proj", "dt_proj", "out_proj"})
"""What a mixer calls or reads, besides its activation. One that has more (norms of B, C or the steps) is another layer."""


@dataclass
class Scan:
    """What a selective scan read in one forward: h_t = exp(steps_t A) h_(t-1) + ..., y_t = C_t h_t + ..."""

    C: Tensor
    """(rows, tokens, states): how the state is read."""
    A: Tensor
    """(inner, states), below 0."""
    begins: bool
    """Whether the state before the first of these tokens is zero, rather than what a cache holds."""
    sizes: Tensor | None = None

    @property
    def steps(self) -> Tensor:
        """(rows, tokens, inner): the steps' sizes, after softplus; 0 at the padding in front of a row, where no state is yet."""
        assert self.sizes is not None, "a part that reads the steps says so: `reads_steps = True`"
        return self.sizes


class StateEdit(Part):
    """read(scan, t, ctx) -> (rows, tokens, inner), added to what the scan returns, before the gate; and, where `writes`,
    a pair with (rows, inner, states), added to the state behind the last token that a cache holds for the next one.

    Nothing of it enters the recurrence while the tokens at hand are scanned: a part that starts the state somewhere else says
    what that adds, since the recurrence is linear in its state.
    """

    reads_steps: ClassVar[bool] = False
    """Whether `read` looks at `scan.steps`."""
    writes: ClassVar[bool] = False
    """Whether `read` returns a pair, for a cache; it is called only where the scan begins."""

    def read(self, scan: Scan, t: T, ctx: Context) -> Any:
        raise NotImplementedError

    def check(self, sites: Any) -> None:
        for s in sites:
            sizes(s)

    def install(self, placed: Placed, adapted: Adapted) -> Iterator[Any]:
        for at in placed.ats():
            mixer = adapted.base.get_submodule(at.site.path)
            refuse_other_scans(mixer, at.part.name, at.site.name)
            hooks = StateHooks(at, mixer)
            yield exchange(mixer, hooks.forward, EDITED)
            yield mixer.in_proj.register_forward_hook(hooks.projected)  # type: ignore[union-attr]
            yield mixer.x_proj.register_forward_hook(hooks.selected)  # type: ignore[union-attr]
            if self.reads_steps:
                yield mixer.dt_proj.register_forward_hook(hooks.timed)  # type: ignore[union-attr]
            yield mixer.out_proj.register_forward_pre_hook(hooks.read)  # type: ignore[union-attr]


def sizes(site: Site) -> tuple[int, int]:
    """(inner width, states) of the selective scan at a site. SiteError where the site is none, or one of another kind."""
    shape = dict(site.parameters).get("A_log", ())
    if len(shape) != 2:
        raise because(
            SiteError(
                f"{site.name} is no layer with a selective scan over (inner width, states), as Mamba's are. Set targets='ssm' on "
                "such a model, or choose a low-rank method for this one."
            ),
            Reason.NO_SCAN,
        )
    return shape[0], shape[1]


def refuse_other_scans(mixer: nn.Module, name: str, where: str) -> None:
    """SiteError unless the mixer is Mamba's: gate from in_proj, B and C from x_proj as they are, steps from dt_proj."""
    children = {n for n, m in mixer.named_children() if any(True for _ in m.parameters())}
    if children != MODULES or any(True for _ in mixer.named_buffers()):
        raise because(
            SiteError(
                f"{name}: {where} ({type(mixer).__name__}) is no layer with a selective scan like Mamba's: it norms what the scan "
                "reads, or projects it otherwise. Choose a low-rank method for this model."
            ),
            Reason.NO_SCAN,
        )


class StateHooks:
    """The hooks of one part at one mixer. What they catch is kept in the forward's context, so that threads do not meet."""

    def __init__(self, at: At, mixer: nn.Module):
        self.at, self.mixer = at, mixer

    @property
    def caught(self) -> dict[str, Any] | None:
        """What this forward of the mixer has shown so far; None: the part is not active, or the mixer is not under way."""
        ctx = self.at.ctx
        return ctx.made.get(self.key) if ctx is not None and self.at.on else None

    @property
    def key(self) -> str:
        return f"scan:{self.at.placed.key}:{self.at.site.name}"

    def forward(self, next: Any, *args: Any, **kwargs: Any) -> Any:
        ctx = self.at.ctx
        if ctx is None or not self.at.on:
            return next(*args, **kwargs)
        h = args[0] if args else kwargs["hidden_states"]
        cache = args[1] if len(args) > 1 else kwargs.get("cache_params")
        mask = args[2] if len(args) > 2 else kwargs.get("attention_mask")
        layer = self.mixer.layer_idx
        begins = h.shape[1] > 1 or cache is None or cache.get_recurrent_state(layer, state_idx=0) is None
        caught = ctx.made[self.key] = {"begins": begins, "mask": mask}
        try:
            out = next(*args, **kwargs)
        finally:
            del ctx.made[self.key]
        if "done" not in caught:
            raise because(
                ModelError(
                    f"{self.at.part.name}: a fused kernel bypasses these modules of {self.at.site.name}, so the part would do nothing. "
                    "Keep the base in evaluation mode, or load it with luthier.load, whose scan calls them."
                ),
                Reason.BYPASSED,
            )
        if cache is not None and (state := caught.get("state")) is not None:
            held = cache.get_recurrent_state(layer, state_idx=0)
            cache.update_recurrent_state(self.at.blend(held + state.to(held.dtype), held, ctx), layer)
        return out

    def projected(self, module: Any, args: Any, out: Tensor) -> None:
        if (caught := self.caught) is not None:
            caught["gate"] = out[..., out.shape[-1] // 2 :]

    def selected(self, module: Any, args: Any, out: Tensor) -> None:
        if (caught := self.caught) is not None:
            caught["selected"] = out

    def timed(self, module: Any, args: Any, out: Tensor) -> None:
        if (caught := self.caught) is not None:
            caught["timed"] = out

    def read(self, module: Any, args: tuple) -> Any:
        caught, ctx = self.caught, self.at.ctx
        if caught is None or ctx is None:
            return None
        caught["done"] = True
        part: StateEdit = self.at.part
        if part.writes and not caught["begins"]:
            return None  # what it wrote is in the cache's state
        x = args[0]
        added = part.read(self.scan(caught), self.at.t(ctx, x.dtype), ctx)
        if part.writes:
            added, caught["state"] = added
        gate: Tensor = self.mixer.act(caught["gate"])  # type: ignore[operator]
        return (self.at.blend(x + (gate * added).to(x.dtype), x, ctx), *args[1:])

    def scan(self, caught: dict[str, Any]) -> Scan:
        mixer: Any = self.mixer
        states, out = mixer.A_log.shape[1], caught["selected"]
        made = Scan(out[..., -states:], -torch.exp(mixer.A_log.float()), caught["begins"])
        if self.at.part.reads_steps:
            timed = caught.get("timed")
            if timed is None:  # the mixer reads the weights of the module instead of calling it, and so do we
                timed = linear(out[..., : -2 * states], mixer.dt_proj.weight, mixer.dt_proj.bias)
            made.sizes = softplus(timed)
            if caught["mask"] is not None:
                made.sizes = made.sizes * (caught["mask"].cumsum(1) > 0)[..., None]
        return made
