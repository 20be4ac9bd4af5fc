"""The place around the blocks: a part that walks them itself, as side networks and reversible networks do."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.host.applicable import Reason, because
from luthier.host.exchange import INSTEAD_OF_BLOCK, exchange
from luthier.host.part import Part, T

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted
    from luthier.host.context import Context
    from luthier.host.placed import Placed


class Stack(Part):
    """run(blocks, h, ts, network, ctx) -> h replaces the walk through a tower's blocks.

    blocks: callables h -> h, or `block(h, module)` to call another module with the block's own arguments; h: (rows, tokens,
    width) as it enters the first block; ts: the part's tensors by block; network: what `build` returned.
    `frozen_blocks`: no gradient enters a block, so that their outputs may come from the prefix cache. Where such a part
    walks two towers of which one reads the other, the reader's own blocks read what the base's blocks left and the side
    modules what `run` returned: the tower then hands on both, one behind the other.
    """

    frozen_blocks: ClassVar[bool] = False

    def run(
        self, blocks: Sequence[Block], h: Tensor, ts: Sequence[T], network: nn.Module | None, ctx: Context
    ) -> Tensor:
        raise NotImplementedError

    def install(self, placed: Placed, adapted: Adapted) -> Iterator[Any]:
        towers = {a.site.tower for a in placed.ats()}
        for tower in towers:
            if any(s.tower == tower for s in adapted.stacks):
                raise ModelError(
                    f"{self.name} replaces the walk through the blocks, and so does another attached adaptation. Detach one."
                )
            blocks = adapted.structure.tower(tower).blocks
            if len(blocks) != sum(a.site.tower == tower and a.site.role == "block" for a in placed.ats()):
                raise ModelError(
                    f"{self.name} needs all {len(blocks)} blocks of the tower {tower!r}. Set targets='block'."
                )
            walk = Walk(placed, adapted, tower)
            adapted.stacks.append(walk)
            for i, path in enumerate(blocks):
                yield exchange(adapted.base.get_submodule(path), Deferred(walk, i).forward, INSTEAD_OF_BLOCK)
            yield Unwalked(adapted, walk)


@dataclass(frozen=True)
class Later:
    """Stands for a further output of a block (a position bias, say) until the block has really been called."""

    block: int
    slot: int


ARITY: weakref.WeakKeyDictionary[type, int] = weakref.WeakKeyDictionary()
"""How many outputs a type of block returns as a tuple; 0: it returns a tensor. Learned at its first call."""


class Block:
    """One block, ready to be called on a hidden state alone."""

    def __init__(
        self, module: nn.Module, forward: Any, args: tuple, kwargs: dict, index: int, walk: Walk, done: dict
    ):
        self.module, self.forward, self.args, self.kwargs = module, forward, args, kwargs
        self.index, self.walk, self.done = index, walk, done

    def __call__(self, h: Tensor, module: nn.Module | None = None) -> Tensor:
        whose = "base" if module is None else "side"
        args = tuple(self._now(a, whose) for a in self.args)
        kwargs = {k: self._now(v, whose) for k, v in self.kwargs.items()}
        if module is not None:
            for past in (v for v in (*args, *kwargs.values()) if hasattr(v, "get_seq_length")):
                _room(past, 2 * len(self.walk.blocks))
        cache = self.walk.adapted.cache
        if module is None and cache is not None and self.walk.placed.part.frozen_blocks:  # type: ignore[attr-defined]
            ready = cache.output(self.walk.tower, self.index)
            if ready is not None:
                return ready
        first = self.done.pop("first", None) if module is None else None
        if first is not None and not torch.is_grad_enabled():
            out = first  # called a moment ago to learn what it returns; twice would write its keys twice
        else:
            out = (module or self.forward)(h, *args, **kwargs)
        self.done[whose, self.index] = out
        return out[0] if isinstance(out, tuple) else out

    def _now(self, value: Any, whose: str) -> Any:
        """What the base's blocks, or the side modules, really returned for a placeholder; for side modules, the side's
        half of what another tower handed on."""
        if not isinstance(value, Later):
            return self.walk.aside(value) if whose == "side" else value
        out = self.done.get((whose, value.block))
        return out[value.slot] if out is not None else None


def _room(past: Any, layers: int) -> None:
    """A side layer keeps its keys in the same cache, behind the base's, so that beams reorder them too."""
    from transformers.cache_utils import DynamicLayer

    for held in (getattr(past, "self_attention_cache", past), getattr(past, "cross_attention_cache", None)):
        while held is not None and len(held.layers) < layers:
            held.layers.append(DynamicLayer())


class Walk:
    """The state of one tower's replaced walk: calls are collected by the blocks, the last one runs them all."""

    def __init__(self, placed: Placed, adapted: Adapted, tower: str):
        self.placed, self.adapted, self.tower = placed, adapted, tower
        self.blocks = adapted.structure.tower(tower).blocks
        walked = {a.site.tower for a in placed.ats()}
        frozen = placed.part.frozen_blocks  # type: ignore[attr-defined]
        self.hands_on_both = frozen and any(
            t.reads == tower and t.name in walked for t in adapted.structure.towers
        )

    @property
    def owner(self) -> str:
        return self.placed.owner

    def split(self, states: Tensor, ctx: Context, mask: Tensor | None) -> Tensor:
        """The base's half of what this tower handed on, (rows, 2 * tokens, width); the side's is kept for `aside`."""
        n, odd = divmod(states.shape[1], 2)
        if odd or (mask is not None and mask.shape[-1] > n):
            raise ModelError(
                f"{self.placed.part.name} was not active when the tower {self.tower!r} ran, but is where it is read. "
                "Run both with it attached."
            )
        halves = states[:, :n], states[:, n:]
        ctx.made[f"halves:{self.tower}"] = halves
        return halves[0]

    def aside(self, value: Any) -> Any:
        """The side's half in the place of the base's."""
        ctx = self.placed.ats()[0].ctx
        halves = ctx.made.get(f"halves:{self.adapted.structure.tower(self.tower).reads}") if ctx else None
        return halves[1] if halves is not None and value is halves[0] else value


class Deferred:
    """A block's forward while the walk is replaced."""

    def __init__(self, walk: Walk, index: int):
        self.walk, self.index = walk, index

    def forward(self, original: Any, h: Tensor, *args: Any, **kwargs: Any) -> Any:
        walk = self.walk
        ctx = walk.placed.ats()[0].ctx
        if ctx is None or walk.owner not in ctx.active:
            return original(h, *args, **kwargs)
        module = walk.adapted.base.get_submodule(walk.blocks[self.index])
        state = ctx.made.setdefault(f"walk:{walk.tower}", {"calls": [], "done": {}})
        if type(module) not in ARITY:
            with torch.no_grad():
                out = original(h, *args, **kwargs)
            ARITY[type(module)] = len(out) if isinstance(out, tuple) else 0
            if self.index == 0:
                state["done"]["first"] = out
        state["calls"].append(Block(module, original, args, kwargs, self.index, walk, state["done"]))
        if self.index == 0:
            state["h"] = h
        if self.index < len(walk.blocks) - 1:
            return self._returned(module, h)
        del ctx.made[f"walk:{walk.tower}"]
        if walk.owner in ctx.rows and not ctx.rows[walk.owner].all():
            raise because(
                ModelError(
                    f"{walk.placed.part.name} replaces the walk through the blocks: it cannot serve only some rows of a batch."
                ),
                Reason.WALKS_BLOCKS,
            )
        if walk.placed.scale != 1.0:
            raise because(
                ModelError(
                    f"{walk.placed.part.name} has no additive effect: it cannot be scaled by {walk.placed.scale}."
                ),
                Reason.NOT_ADDITIVE,
            )
        ts = [
            a.t(ctx, h.dtype)
            for a in walk.placed.ats()
            if a.site.tower == walk.tower and a.site.role == "block"
        ]
        network = walk.placed.network
        if isinstance(network, nn.ModuleDict) and walk.tower in network:
            network = network[walk.tower]
        out = walk.placed.part.run(state["calls"], state["h"], ts, network, ctx)  # type: ignore[attr-defined]
        if walk.hands_on_both:
            own = state["done"]["base", self.index]
            out = torch.cat([(own[0] if isinstance(own, tuple) else own).detach(), out], 1)
        return self._returned(module, out)

    def _returned(self, module: nn.Module, h: Tensor) -> Any:
        return (
            (h, *(Later(self.index, i) for i in range(1, ARITY[type(module)]))) if ARITY[type(module)] else h
        )


class Unwalked:
    def __init__(self, adapted: Adapted, walk: Walk):
        self.adapted, self.walk = adapted, walk

    def remove(self) -> None:
        self.adapted.stacks.remove(self.walk)
