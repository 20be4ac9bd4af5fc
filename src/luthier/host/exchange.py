"""Exchanging a module's forward while something is attached: handlers around the original, removed without a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Handler = Callable[..., Any]
"""(next, *args, **kwargs) -> output; `next` is the rest of the chain. A bound method or an object, never a closure: it is copied and pickled."""


class Chain:
    """Stands in for one module's `forward`: its handlers, outermost first, then the forward that was there before."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.before = module.__dict__.get("forward")
        self.handlers: list[tuple[int, Handler]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Next(self, 0)(*args, **kwargs)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)


class Next:
    """The rest of a chain from one handler on."""

    __slots__ = ("chain", "index")

    def __init__(self, chain: Chain, index: int):
        self.chain, self.index = chain, index

    @property
    def bare(self) -> bool:
        """Whether all that is left is the forward of the module's class."""
        return self.index == len(self.chain.handlers) and self.chain.before is None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handlers = self.chain.handlers
        if self.index == len(handlers):
            return self.chain.original(*args, **kwargs)
        return handlers[self.index][1](Next(self.chain, self.index + 1), *args, **kwargs)


class Exchanged:
    """Removes one handler again."""

    def __init__(self, module: nn.Module, handler: Handler):
        self.module, self.handler = module, handler

    def remove(self) -> None:
        chain = self.module.__dict__.get("forward")
        if not isinstance(chain, Chain):
            return
        chain.handlers = [(order, h) for order, h in chain.handlers if h != self.handler]
        if not chain.handlers:
            del self.module.__dict__["forward"]
            if chain.before is not None:
                self.module.__dict__["forward"] = chain.before


def exchange(module: nn.Module, handler: Handler, order: int) -> Exchanged:
    """Put `handler` around the module's forward; smaller `order` is further out. The base keeps its module tree and names."""
    chain = module.__dict__.get("forward")
    if not isinstance(chain, Chain):
        chain = Chain(module)
        module.__dict__["forward"] = chain
    chain.handlers = sorted([*chain.handlers, (order, handler)], key=lambda pair: pair[0])
    return Exchanged(module, handler)


OUTSIDE_CACHE, INSTEAD_OF_BLOCK, RECOMPUTED, NARROWED, EDITED = 0, 10, 20, 25, 30
"""Orders: what the prefix cache hands on, a stack that walks the blocks itself, checkpointing, units left out, edits of the module."""
