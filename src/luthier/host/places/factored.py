"""A frozen linear with low-rank changes as one autograd function: what the layer received is saved once, and nothing else.

y = x W^T + b + sum_i s_i (D_i(x) A_i^T) B_i^T    A: (rank, in)  B: (out, rank)  D: dropout, or nothing

Plain autograd keeps x for A, x A^T for B and a mask for D, and adds wide intermediates up; here x A^T and D are made again in
the backward pass. Narrow products are taken as (rank, rows): MKL is two to five times slower on (rows, rank).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from luthier.host.places.remade import plain
from luthier.host.sites import is_transposed

STANDS_FOR: ContextVar[float] = ContextVar("luthier_stands_for", default=1.0)
"""How many times as many rows the batch has for which a trial stands, so that the trial takes the same way (memory prediction)."""


class Factors(NamedTuple):
    """scale * up @ down, the change of a weight: (out, in)."""

    up: Tensor
    """(out, rank)."""
    down: Tensor
    """(rank, in)."""
    scale: float = 1.0
    dropout: float = 0.0
    """Share of the input's entries that the change does not see; 0 outside training."""

    def less(self, start: Factors) -> Factors:
        """This change without an anchored start's: B A - B_0 A_0 = (B - B_0) A + B_0 (A - A_0).

        Nothing where they are equal; in half precision, rounding in proportion to what was learned, not to the start.
        """
        up = torch.cat([self.up - start.up, start.up], -1)
        return self._replace(up=up, down=torch.cat([self.down, self.down - start.down], -2))


class Change(NamedTuple):
    """How one pair of factors enters; the tensors themselves are arguments of the function."""

    rows: tuple[int, int] | None
    scale: float
    dropout: float
    seed: int = 0
    folds: bool = False
    """Whether W + s B A is made first."""


def usable(module: nn.Module, original: Any, x: Tensor) -> bool:
    """Whether a module is a plain frozen linear map whose forward nobody else has exchanged, and plain autograd is at work."""
    weight = getattr(module, "weight", None)
    return (
        (type(module) is nn.Linear or is_transposed(module))
        and getattr(original, "bare", False)
        and type(weight) is nn.Parameter
        and not weight.requires_grad
        and (module.bias is None or not module.bias.requires_grad)  # type: ignore[union-attr]
        and x.is_floating_point()
        and not x.is_meta
        and plain()
    )


def folding(x: Tensor, weight: Tensor) -> bool:
    """Whether W + dW is made first: cheaper than a change of a long output; half precision would round it away."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    rows = x.numel() // max(1, x.shape[-1]) * STANDS_FOR.get()
    return rows >= min(weight.shape) and dtype.itemsize >= 4 and weight.dtype == dtype


def changed(
    module: Any, x: Tensor, given: Sequence[tuple[Factors, tuple[int, int] | None, float]]
) -> Tensor | None:
    """The module's output with changes. None: this needs plain autograd.

    given: (factors, slice of the outputs, coefficient).
    """
    weight = module.weight.T if is_transposed(module) else module.weight
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if dtype == x.dtype != weight.dtype:
        return None
    folds = folding(x, weight)
    tensors: list[Tensor] = []
    changes: list[Change] = []
    for f, outputs, coefficient in given:
        if f.up.dim() != 2 or f.down.dim() != 2:
            return None
        # from the generator that checkpointing restores
        seed = int(torch.randint(2**62, ())) if f.dropout else 0
        tensors += [f.up, f.down]
        changes.append(Change(outputs, f.scale * coefficient, f.dropout, seed, folds and not f.dropout))
    if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors)):
        return FactoredLinear.apply(x, weight, module.bias, dtype, changes, *tensors)  # type: ignore[no-any-return]
    return _forward(x, weight, module.bias, dtype, changes, tensors)


def _folded(weight: Tensor, tensors: Sequence[Tensor], changes: Sequence[Change]) -> Tensor:
    """The weight with those changes that fold."""
    for i, c in enumerate(changes):
        if not c.folds:
            continue
        up, down = tensors[2 * i].to(weight.dtype), tensors[2 * i + 1].to(weight.dtype)
        own = weight if c.rows is None else weight[c.rows[0] : c.rows[1]]
        own = torch.addmm(own, up, down, alpha=c.scale)
        if c.rows is None:
            weight = own
        else:
            weight = torch.cat([weight[: c.rows[0]], own, weight[c.rows[1] :]])
    return weight


def _seen(x: Tensor, change: Change) -> Tensor:
    """What a change sees of x: (rows, in)."""
    return x if not change.dropout else x * _mask(x, change)


def _mask(x: Tensor, change: Change) -> Tensor:
    """The same in the forward and the backward pass: drawn from the change's seed."""
    if change.dropout >= 1:
        return torch.zeros_like(x)
    rng = torch.Generator(x.device).manual_seed(change.seed)
    keep = 1 - change.dropout
    return torch.empty_like(x).bernoulli_(keep, generator=rng).div_(keep)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    changes: Sequence[Change],
    tensors: Sequence[Tensor],
) -> Tensor:
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    weight = _folded(weight.to(dtype), tensors, changes)
    y = linear(flat, weight, None if bias is None else bias.to(dtype))
    for i, c in enumerate(changes):
        if c.folds:
            continue
        up, down = tensors[2 * i].to(dtype), tensors[2 * i + 1].to(dtype)
        own, seen = y if c.rows is None else y[:, c.rows[0] : c.rows[1]], _seen(flat, c).T
        own.addmm_((down @ seen).T, up.T, alpha=c.scale)
    return y.view(*x.shape[:-1], y.shape[-1])


class FactoredLinear(torch.autograd.Function):
    """(x, weight (out, in), bias, dtype to compute in, changes, up_0, down_0, up_1, ...) -> y. The weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, dtype, changes, *tensors):
        ctx.save_for_backward(x, weight, *tensors)
        ctx.dtype, ctx.changes = dtype, changes
        return _forward(x, weight, bias, dtype, changes, tensors)

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> Any:  # of operations with gradients of their own: it can be differentiated again
        x, weight, *tensors = ctx.saved_tensors
        dtype, changes = ctx.dtype, ctx.changes
        g = grads[0].reshape(-1, weight.shape[0])
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        into_x, into = ctx.needs_input_grad[0], ctx.needs_input_grad[5:]
        gx = g @ _folded(weight.to(dtype), tensors, changes) if into_x else None
        out: list[Tensor | None] = []
        for i, c in enumerate(changes):
            up, down = tensors[2 * i].to(dtype), tensors[2 * i + 1].to(dtype)
            own = g if c.rows is None else g[:, c.rows[0] : c.rows[1]]
            mask = _mask(flat, c) if c.dropout else None
            seen = flat if mask is None else flat * mask
            back = None  # (rank, rows)
            if into[2 * i + 1] or (gx is not None and not c.folds):
                back = c.scale * (up.T.contiguous() @ own.T)
            g_up = c.scale * ((down @ seen.T) @ own).T if into[2 * i] else None
            g_down = back @ seen if back is not None and into[2 * i + 1] else None
            if gx is not None and not c.folds and back is not None:
                gx = torch.addmm(gx, back.T, down) if mask is None else gx + (back.T @ down) * mask
            out += [None if g_up is None else g_up.to(tensors[2 * i].dtype)]
            out += [None if g_down is None else g_down.to(tensors[2 * i + 1].dtype)]
        return (None if gx is None else gx.view(x.shape).to(x.dtype), None, None, None, None, *out)
