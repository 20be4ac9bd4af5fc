"""A frozen linear whose weight changes as a whole, as one autograd function: what the layer received is saved, and nothing else.

y = x W'^T + b'    W' = change(W, t), made again in the backward pass
Plain autograd keeps W', and whatever the change makes on its way, for every layer until the backward pass has come by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

Make = Callable[[], Mapping[str, Tensor]]
"""() -> the module's parameters as it stores them, changed; called again in the backward pass."""


def remade(x: Tensor, make: Make, turned: bool, trained: Sequence[Tensor]) -> Tensor | None:
    """The layer's output with what `make` makes of the tensors `trained`. turned: the weight is stored (in, out).

    None: this needs plain autograd.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in trained):
        return None
    return RemadeLinear.apply(x, make, turned, dtype, *trained)  # type: ignore[no-any-return]


def _made(make: Make, turned: bool, kind: str) -> tuple[Tensor, Tensor | None]:
    with torch.autocast(kind, enabled=False):
        now = make()
    return (now["weight"].T if turned else now["weight"]), now.get("bias")


class RemadeLinear(torch.autograd.Function):
    """(x, make, turned, dtype to compute in, trained tensors...) -> y."""

    @staticmethod
    def forward(ctx: Any, x, make, turned, dtype, *trained):
        ctx.save_for_backward(x, *trained)
        ctx.make, ctx.turned, ctx.dtype = make, turned, dtype
        weight, bias = _made(make, turned, x.device.type)
        return linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, *trained = ctx.saved_tensors
        wanted = [t for t, needed in zip(trained, ctx.needs_input_grad[4:], strict=True) if needed]
        with torch.enable_grad():
            weight, bias = _made(ctx.make, ctx.turned, x.device.type)
        g = grads[0].reshape(-1, weight.shape[0])
        into_x = (
            (g @ weight.detach().to(g.dtype)).view(x.shape).to(x.dtype) if ctx.needs_input_grad[0] else None
        )
        ends, given = [weight], [(g.T @ x.reshape(-1, x.shape[-1]).to(g.dtype)).to(weight.dtype)]
        if bias is not None and bias.requires_grad:
            ends, given = [*ends, bias], [*given, g.sum(0).to(bias.dtype)]
        found = iter(torch.autograd.grad(ends, wanted, given, allow_unused=True) if wanted else ())
        return into_x, None, None, None, *(next(found) if n else None for n in ctx.needs_input_grad[4:])
