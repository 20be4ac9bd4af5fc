"""What is made again in the backward pass instead of kept: changes on activations, and weights with their changes folded in.

Plain autograd keeps every intermediate of a shortcut, and for a changed weight the whole weight. Here only what goes in is
kept: what the layer received, and the small tensors that train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


def plain() -> bool:
    """Whether plain autograd is at work: neither the compiler nor vmap, jvp or forward-mode differentiation."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def remade(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, of which the backward pass keeps the tensors alone and runs it again.

    function: without state or randomness, and without tensors of its own that train.
    """
    if plain() and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return Remade.apply(function, *tensors)  # type: ignore[no-any-return]
    return function(*tensors)


def folded(
    make: Callable[..., tuple[Tensor, Tensor | None]],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tensors: Sequence[Tensor],
) -> Tensor:
    """x W'^T + b' with (W', b') = make(weight, bias, *tensors); weight, (out, in), and bias are frozen, and what is made, in the weight's
    dtype, is not kept. The product is taken in the dtype of x, or of autocast where that is on.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors)):
        return FoldedLinear.apply(make, dtype, x, weight, bias, *tensors)  # type: ignore[no-any-return]
    return _product(make, dtype, x, weight, bias, tensors)


def _product(
    make: Callable[..., tuple[Tensor, Tensor | None]],
    dtype: torch.dtype,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tensors: Sequence[Tensor],
) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        changed, added = make(weight, bias, *tensors)
    return linear(x.to(dtype), changed.to(dtype), None if added is None else added.to(dtype))


def _pulled(
    function: Callable[..., Any], tensors: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Any, Callable[..., list[Tensor | None]]]:
    """(function(*tensors), the map from the gradients of what it makes to theirs). It can be differentiated again where the backward
    pass is."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        given = list(tensors) if again else [t.detach().requires_grad_(n) for t, n in zip(tensors, needs)]
        made = function(*given)

    def back(*grads: Tensor) -> list[Tensor | None]:
        wanted = [t for t, n in zip(given, needs) if n]
        each = zip(made if isinstance(made, tuple) else (made,), grads, strict=True)
        moved = [(m, g) for m, g in each if m is not None and m.requires_grad]
        if not moved:
            return [None for _ in needs]
        outs, into = zip(*moved)
        found = iter(torch.autograd.grad(outs, wanted, into, create_graph=again, allow_unused=True))
        return [next(found) if n else None for n in needs]

    return made, back


class Remade(torch.autograd.Function):
    """(function, *tensors) -> function(*tensors)."""

    @staticmethod
    def forward(ctx: Any, function, *tensors):
        ctx.save_for_backward(*tensors)
        kind = tensors[0].device.type
        ctx.function = function
        ctx.cast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        kind, dtype, enabled = ctx.cast
        with torch.autocast(kind, dtype, enabled, cache_enabled=False):
            _, back = _pulled(ctx.function, ctx.saved_tensors, ctx.needs_input_grad[1:])
        return (None, *back(grads[0]))


class FoldedLinear(torch.autograd.Function):
    """(make, dtype of the product, x, weight (out, in), bias, *tensors) -> x W'^T + b', (W', b') = make(weight, bias, *tensors)."""

    @staticmethod
    def forward(ctx: Any, make, dtype, x, weight, bias, *tensors):
        ctx.save_for_backward(x, weight, bias, *tensors)
        ctx.make = make
        return _product(make, dtype, x, weight, bias, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, bias, *tensors = ctx.saved_tensors
        g, needs = grads[0], ctx.needs_input_grad[5:]
        with torch.autocast(x.device.type, enabled=False):
            (changed, _), back = _pulled(lambda *t: ctx.make(weight, bias, *t), tensors, needs)
            gx = (g @ changed.to(g.dtype)).to(x.dtype) if ctx.needs_input_grad[2] else None
            out: list[Tensor | None] = [None] * len(tensors)
            if any(needs):
                flat = g.reshape(-1, g.shape[-1])
                whole = flat.T @ x.reshape(-1, x.shape[-1]).to(g.dtype)
                out = back(whole.to(changed.dtype), flat.sum(0).to(changed.dtype))
        return (None, None, gx, None, None, *out)
