"""The place around the blocks: a part that walks them itself, as side networks and reversible networks do."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
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
    `frozen_blocks`: no gradient enters a block, so that their outputs may come from the prefix cache.
    """

    frozen_blocks: ClassVar[bool] = False

    def run(
        self, blocks: Sequence[Block], h: Tensor, ts: Sequence[T], network: nn.Module | None, ctx: Context
    ) -> Tensor:
        raise NotImplementedError

    def sides(self, placed: Placed) -> int:
        """How many side states it has where it walks two towers of which one reads the other. The reader's own blocks then read what
        the base's blocks left, and side modules what `run` returned, so many states one behind the other: the tower hands on
        all of them (`Block.handed_on`). 0: what `run` returns takes the place of the base's state."""
        return int(self.frozen_blocks)

    def caching(self, network: Any) -> Iterable[nn.Module]:
        """The modules of one tower's network that `run` calls in blocks' places, in order: each keeps keys of its own in a
        key/value cache, behind the base's, so that beams reorder them too."""
        return ()

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

    @property
    def handed_on(self) -> bool:
        """Whether what `run` returns goes to another tower, beside the base's states."""
        return self.walk.sides > 0

    def __call__(self, h: Tensor, module: nn.Module | None = None, side: int = 1) -> Tensor:
        """What the block returns, or another module in its place, which belongs to the side state of this number."""
        whose = 0 if module is None else side
        args = tuple(self._now(a, whose) for a in self.args)
        kwargs = {k: self._now(v, whose) for k, v in self.kwargs.items()}
        if module is not None:
            for past in (v for v in (*args, *kwargs.values()) if hasattr(v, "get_seq_length")):
                _room(past, self.walk.slots)
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

    def _now(self, value: Any, whose: int) -> Any:
        """What the base's blocks (0), or a side's modules, really returned for a placeholder; for side modules, the side's
        own of what another tower handed on."""
        if not isinstance(value, Later):
            return self.walk.aside(value, whose) if whose else value
        out = self.done.get((whose, value.block))
        return out[value.slot] if out is not None else None


def _room(past: Any, layers: int) -> None:
    """Room for so many layers in a key/value cache."""
    from transformers.cache_utils import DynamicLayer

    for held in (getattr(past, "self_attention_cache", past), getattr(past, "cross_attention_cache", None)):
        while held is not None and len(held.layers) < layers:
            held.layers.append(DynamicLayer())


class Walk:
    """The state of one tower's replaced walk: calls are collected by the blocks, the last one runs them all."""

    def __init__(self, placed: Placed, adapted: Adapted, tower: str):
        self.placed, self.adapted, self.tower = placed, adapted, tower
        self.blocks = adapted.structure.tower(tower).blocks
        self.slots = len(self.blocks)
        """How many layers keep keys in a cache: the base's, and behind them the side modules."""
        for whose in (placed, *placed.members):
            network = whose.network_of(tower)
            for layer in whose.part.caching(network) if network is not None else ():  # type: ignore[attr-defined]
                for m in layer.modules():
                    if isinstance(getattr(m, "layer_idx", None), int):
                        m.layer_idx = self.slots
                self.slots += 1
        walked = {a.site.tower for a in placed.ats()}
        read = any(t.reads == tower and t.name in walked for t in adapted.structure.towers)
        self.sides = placed.part.sides(placed) if read else 0  # type: ignore[attr-defined]

    @property
    def owner(self) -> str:
        return self.placed.owner

    def split(self, states: Tensor, ctx: Context, mask: Tensor | None) -> Tensor:
        """The base's part of what this tower handed on, (rows, (1 + sides) * tokens, width); the sides' are kept for `aside`."""
        n, odd = divmod(states.shape[1], 1 + self.sides)
        if odd or (mask is not None and mask.shape[-1] > n):
            raise ModelError(
                f"{self.placed.part.name} was not active when the tower {self.tower!r} ran, but is where it is read. "
                "Run both with it attached."
            )
        pieces = states.split(n, 1)
        ctx.made[f"pieces:{self.tower}"] = pieces
        return pieces[0]

    def last(self, states: Tensor) -> Tensor:
        """The last side's part of what this tower handed on: what is seen of it from outside."""
        return states[:, -(states.shape[1] // (1 + self.sides)) :]

    def aside(self, value: Any, side: int) -> Any:
        """A side's part in the place of the base's."""
        ctx = self.placed.ats()[0].ctx
        pieces = ctx.made.get(f"pieces:{self.adapted.structure.tower(self.tower).reads}") if ctx else None
        return pieces[side] if pieces is not None and value is pieces[0] else value


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
        out = walk.placed.part.run(state["calls"], state["h"], ts, walk.placed.network_of(walk.tower), ctx)  # type: ignore[attr-defined]
        if walk.sides:
            own = state["done"][0, self.index]
            out = torch.cat([own[0] if isinstance(own, tuple) else own, out], 1)
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
