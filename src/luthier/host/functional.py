"""A module's forward with other parameters, without touching the module where its type has a functional form."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from luthier.host.exchange import Chain
from luthier.host.sites import is_transposed

_SWAPPING = threading.RLock()
_CONVOLUTIONS: dict[type, Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def first(args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """What a module was called with first, by position or by name: what it reads."""
    return args[0] if args else next(iter(kwargs.values()))


def call_with(module: Any, parameters: Mapping[str, Tensor], args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """`module(*args, **kwargs)` as if its own parameters were `parameters`."""
    kind = type(module)
    if kind is nn.Linear:
        return F.linear(args[0], parameters["weight"], parameters.get("bias"))
    if kind is nn.LayerNorm:
        return F.layer_norm(
            args[0], module.normalized_shape, parameters.get("weight"), parameters.get("bias"), module.eps
        )
    if kind is nn.Embedding:
        return F.embedding(
            args[0], parameters["weight"], module.padding_idx, module.max_norm, module.norm_type
        )
    if is_transposed(module):
        return F.linear(args[0], parameters["weight"].T, parameters.get("bias"))
    if kind in _CONVOLUTIONS and module.padding_mode == "zeros":
        weight, bias = parameters["weight"], parameters.get("bias")
        how = module.stride, module.padding, module.dilation, module.groups
        return _CONVOLUTIONS[kind](args[0], weight, bias, *how)
    chain = module.__dict__.get("forward")
    if chain is None or (isinstance(chain, Chain) and chain.before is None):
        own = copy.copy(module)  # shares all but the table of parameters: other threads see nothing of it
        own.__dict__.pop("forward", None)
        own._parameters = {**module._parameters, **parameters}
        return kind.forward(own, *args, **kwargs)
    forward = original_forward(module)
    with _SWAPPING:  # a forward that is not its type's: swapped for the call, one thread at a time
        held = {n: module._parameters[n] for n in parameters}
        try:
            module._parameters.update(parameters)  # type: ignore[arg-type]
            return forward(*args, **kwargs)
        finally:
            module._parameters.update(held)


def original_forward(module: nn.Module) -> Any:
    """The forward that was there before anything was exchanged."""
    chain = module.__dict__.get("forward")
    return chain.original if isinstance(chain, Chain) else module.forward


def rowwise(v: Tensor, like: Tensor) -> Tensor:
    """A vector, or one vector per row, shaped to multiply `like`: (rows, ..., width)."""
    return v if v.dim() == 1 else v.view(len(v), *[1] * (like.dim() - 2), -1)
