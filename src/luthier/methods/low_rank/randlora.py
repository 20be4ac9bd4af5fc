"""RandLoRA: a full-rank update from fixed random low-rank pieces (Albert et al. 2025, "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", S190).

dW = scale * sum_n B_n diag(lambda_n) A diag(gamma_n)    n = 1 .. N = ceil(min / rank)    (min, max: the smaller and the larger side)
B_n: (max, rank)  A: (rank, min), fixed, of a seed, of standard deviation 1, cut from one set to each site; where out is the smaller side
dW is the transpose.    lambda: (N, rank)  gamma: (N, min)
trained: ((min(in,out) + rank - 1) // rank) * (rank + min(in,out)) per site
Step 0 is the base (lambda = 0, gamma = 1 / min). Merging adds dW. A smaller rank costs more: there are more pieces.
A file holds the seed and the diagonals: the bases are drawn again.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import linear

from luthier.host.part import Spec, method, zeros
from luthier.host.places import WeightEdit
from luthier.host.places.remade import remade
from luthier.sources.seeded import seeded, ternary, uniform

BASES = {"uniform": uniform, "ternary": ternary}


def factors(
    outputs: int, inputs: int, lam: Tensor, gamma: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """(up, down) with dW = up @ down: all pieces side by side. lam: (..., N, rank), gamma: (..., N, min)."""
    most, least = max(outputs, inputs), min(outputs, inputs)
    pieces = lam.shape[-2]
    wide = b[:pieces, :most].to(lam.dtype).movedim(0, 1).flatten(1)  # (max, N rank)
    narrow = (lam.unsqueeze(-1) * a[:, :least].to(lam.dtype) * gamma.unsqueeze(-2)).flatten(-3, -2)
    return (wide, narrow) if outputs >= inputs else (narrow.mT, wide.mT)


def applied(outputs: int, x: Tensor, lam: Tensor, gamma: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The update without its scale on activations, in two products."""
    up, down = factors(outputs, x.shape[-1], lam, gamma, a, b)
    if lam.dim() == 2:
        return linear(linear(x, down), up)
    return x @ down.mT @ up.mT


@method("randlora", targets="*attention.query | *attention.value", rate=1e-3, identity_start=True)
class RandLoRA(WeightEdit):
    rank: PositiveInt = 32  # of a piece, at most min(in, out) of every site: a smaller rank has more pieces, and more parameters
    scale: PositiveFloat = (
        20.0  # the update is multiplied by it; lower it, or the rate, where training is not stable
    )
    basis: Literal["uniform", "ternary"] = "uniform"  # what A and B are drawn from
    seed: NonNegativeInt = 0  # of A and B: adaptations of one seed have the same

    folds = True

    def tensors(self, site, layout):
        least = min(site.in_features, site.out_features)
        pieces = -(-least // self.rank)
        constant = lambda shape, rng: torch.full(shape, 1 / least)
        return {
            "lam": Spec((pieces, self.rank), zeros),
            "gamma": Spec((pieces, least), constant),
        }

    def shared(self, sites):
        least = max(min(s.in_features, s.out_features) for s in sites)
        most = max(max(s.in_features, s.out_features) for s in sites)
        draw = BASES[self.basis]
        return {
            "A": seeded((self.rank, least), draw, self.seed, "A"),
            "B": seeded((-(-least // self.rank), most, self.rank), draw, self.seed, "B"),
        }

    def delta(self, weight, t):
        outputs, inputs = weight.shape
        up, down = factors(outputs, inputs, t.lam, t.gamma, t.A, t.B)
        return self.scale * (up @ down)

    def shortcut(self, x, y, t):
        return y + self.scale * remade(partial(applied, y.shape[-1]), x, t.lam, t.gamma, t.A, t.B)

    def check(self, sites):
        self.check_rank(self.rank, sites)
