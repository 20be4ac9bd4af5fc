"""How much a task hangs on each hidden unit: gradient attribution (as skill localisation uses it, S301).

    A_u = sum over rows of max over tokens of |sum over u's inputs i of h_i dP(y|x) / dh_i|

h: what the layer that reads the units receives, (rows, tokens, units * width); a unit of a feed-forward layer is one input
(width 1), a group of heads all inputs that it makes, so that its score is the derivative by a gate on it (Michel et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def attribution(
    modules: Mapping[str, tuple[nn.Module, int]], row_loss: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """{name: A of one row, (units,)}. modules: {name: (the layer that reads the units, how many)}; row_loss() -> -log P(y|x)."""
    held: dict[str, Tensor] = {}
    handles = [m.register_forward_pre_hook(_Keep(held, name)) for name, (m, _) in modules.items()]
    try:
        with torch.enable_grad():
            probability = torch.exp(-row_loss().float())
        gradients = torch.autograd.grad(probability, list(held.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    found = {
        name: modules[name][0].weight.new_zeros(modules[name][1], dtype=torch.float32)  # type: ignore[union-attr,operator]
        for name in modules
    }
    for (name, h), gradient in zip(held.items(), gradients, strict=True):
        if gradient is not None:
            each = (h.detach().float() * gradient.float()).unflatten(-1, (modules[name][1], -1)).sum(-1)
            found[name] = each.abs().flatten(0, -2).amax(0)
    return found


class _Keep:
    """Holds what a layer receives in its first call; a value that needs no gradient is given one."""

    def __init__(self, held: dict[str, Tensor], name: str):
        self.held, self.name = held, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if self.name in self.held:  # a block that is recomputed
            return None
        x = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        self.held[self.name] = x
        return (x, *args[1:])


def highest(scores: Tensor, share: float) -> Tensor:
    """Indices, in order, of what stays when the lowest `share` goes; at least one."""
    n = max(1, round((1 - share) * len(scores)))
    return scores.topk(n).indices.sort().values
