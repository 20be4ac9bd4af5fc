"""The place in front of one block's sequence: tokens that this block alone sees, as many as it likes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.host.applicable import Reason, because
from luthier.host.part import Part, T
from luthier.host.places.tokens import refuse_without_mixing
from luthier.host.sites import Site, Structure

if TYPE_CHECKING:
    from luthier.host.adapted import Adapted
    from luthier.host.context import Context
    from luthier.host.placed import At, Placed

SHARED = frozenset({"position_bias", "position_embeddings"})
"""Arguments of a block's forward that are made once for all blocks, for a sequence of one length."""


class BlockTokens(Part):
    """tokens(t, ctx) -> (length, width), (rows, length, width) or None, in front of what enters a block; what they become is taken off
    what leaves it. Every token of the block sees them, also where it masks others.

    They have no positions. Blocks that share a cache or positions made for one length cannot have them.
    """

    def tokens(self, t: T, ctx: Context) -> Tensor | None:
        raise NotImplementedError

    def sites(self, structure: Structure, name: str | None = None) -> Sequence[Site]:
        """Blocks of the first tower among those that `targets` selects."""
        if name is not None:
            return super().sites(structure, name)
        refuse_without_mixing(self.name, structure)
        found = super().sites(structure)
        return [s for s in found if s.tower == found[0].tower]

    def install(self, placed: Placed, adapted: Adapted) -> Iterator[Any]:
        for at in placed.ats():
            block = adapted.base.get_submodule(at.site.path)
            tower = adapted.structure.tower(at.site.tower)
            if tower.causal or SHARED & set(inspect.signature(block.forward).parameters):
                raise because(
                    ModelError(
                        f"{self.name} lengthens the sequence of one block alone, and the blocks share positions or a cache in {adapted.structure.model}. "
                        "Choose prompt_tuning or deep_prompt."
                    ),
                    Reason.BLOCKS_SHARE,
                )
            hooks = InFront(at)
            yield block.register_forward_pre_hook(hooks.enter, with_kwargs=True)
            # before whatever else reads what leaves the block, and the last to enter first
            yield block.register_forward_hook(hooks.leave, with_kwargs=True, prepend=True)


class InFront:
    """Bound methods serve as hooks, because they copy and pickle with the part. The last to enter a block is the first to leave."""

    def __init__(self, at: At):
        self.at = at

    def enter(self, module: Any, args: tuple, kwargs: dict) -> Any:
        made = self._made()
        if made is None:
            return None
        self._inside.append((self, args, kwargs))
        h = args[0] if args else kwargs["hidden_states"]
        made, n = made.to(h.dtype), made.shape[-2]
        h = torch.cat([made if made.dim() == 3 else made.expand(len(h), -1, -1), h], 1)
        if "attention_mask" in kwargs:
            kwargs = {**kwargs, "attention_mask": _lengthened(kwargs["attention_mask"], n)}
        if not args:
            return args, {**kwargs, "hidden_states": h}
        return (h, *(_lengthened(mask, n) for mask in args[1:2]), *args[2:]), kwargs

    def leave(self, module: Any, args: tuple, kwargs: dict, out: Any) -> Any:
        made = self._made()
        if made is None:
            return None
        at, ctx = self.at, self.at.ctx
        assert ctx is not None
        new = _first(out)[:, made.shape[-2] :]
        if at.placed.scale != 1.0 or at.placed.owner in ctx.rows:
            new = at.blend(new, self._without(module, ctx), ctx)
        self._inside.pop()
        return (new, *out[1:]) if isinstance(out, tuple) else new

    @property
    def _inside(self) -> list[tuple[InFront, tuple, dict]]:
        """Whose tokens are in the block in this forward, in the order in which they entered, with what the block was given before."""
        assert self.at.ctx is not None
        return self.at.ctx.made.setdefault(f"inside {self.at.site.path}", [])  # type: ignore[no-any-return]

    def _made(self) -> Tensor | None:
        at, ctx = self.at, self.at.ctx
        if ctx is None or not at.on or self in ctx.made.get(f"silent at {at.site.path}", ()):
            return None
        return at.part.tokens(at.t(ctx), ctx)  # type: ignore[no-any-return]

    def _without(self, module: Any, ctx: Context) -> Tensor:
        """What the block returns without these tokens, for rows that they do not serve; those that entered before stay in."""
        _, args, kwargs = self._inside[-1]
        key = f"silent at {self.at.site.path}"
        before = ctx.made.get(key, ())
        ctx.made[key] = [hooks for hooks, _, _ in self._inside]
        try:
            return _first(module(*args, **kwargs))
        finally:
            ctx.made[key] = before


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


def _lengthened(mask: Any, n: int) -> Any:
    """(rows, tokens), or (rows, heads, tokens, tokens) of booleans or of what is added to scores, with n tokens that all see."""
    if not torch.is_tensor(mask):
        return mask
    if mask.dim() == 4:
        mask = torch.cat([mask[:, :, :1].expand(-1, -1, n, -1), mask], 2)
    front = mask.new_zeros if mask.is_floating_point() and mask.dim() == 4 else mask.new_ones
    return torch.cat([front(*mask.shape[:-1], n), mask], -1)
