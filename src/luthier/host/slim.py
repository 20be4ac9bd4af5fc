"""A linear map through a narrow middle, in the place of a dense one: what a slim model is made of.

y = U (V x) + b    V: (rank, in), `down`    U: (out, rank), `up`, which holds the bias
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class Slim(nn.Module):
    """Its two layers are linear sites of their own; the whole has the role of the map whose place it takes, and no weight."""

    weight: ClassVar[None] = None
    """There is none: models that ask for one's kind of number (T5) find nothing to convert."""

    def __init__(self, inputs: int, outputs: int, rank: int, bias: bool = True):
        super().__init__()
        self.in_features, self.out_features, self.rank = inputs, outputs, rank
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))  # type: ignore[no-any-return]

    @property
    def product(self) -> Tensor:
        """U V: (out, in)."""
        return self.up.weight @ self.down.weight

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


@torch.no_grad()
def truncated(weight: Tensor, bias: Tensor | None, rank: int) -> Slim:
    """The best map of this rank: the top singular components, the root of each value in either factor. weight: (out, in)."""
    out, inputs = weight.shape
    made = Slim(inputs, out, rank, bias is not None).to(weight.device, weight.dtype)
    exact = weight if weight.dtype == torch.float64 else weight.float()
    u, sigma, v = torch.linalg.svd(exact, full_matrices=False)
    root = sigma[:rank].sqrt()
    made.up.weight.copy_(u[:, :rank] * root)
    made.down.weight.copy_(root[:, None] * v[:rank])
    if bias is not None:
        made.up.bias.copy_(bias)
    return made
