"""SoKA: a sum of Kronecker products that starts as the weight's largest ones (Chong et al. 2025, "Singular Value Decomposition on Kronecker Adaptation for Large Language Model", S268).

W + sum_k (U_k kron V_k - U0_k kron V0_k)    U: (rank, m1, n1)  V: (rank, out / m1, in / n1)
W = sum_k sigma_k U_k kron V_k is the singular value decomposition of W rearranged, each block (out / m1, in / n1) a row; U0 and V0 are
its first `rank` terms with the root of sigma in each. rank, by layer: the smaller of what `energy` and the elbow say, at most `largest`.
trained: rank * (root(out) * root(in) + (out // root(out)) * (in // root(in))) per site (m1 = n1 = 0: root is the largest divisor up to the square root)
Step 0 is the base. Merging adds the difference. On activations no product is made: U X V^T viewed flat, x viewed row by row.

Differs: the paper's abstract speaks of the update and no code is public; here W itself is decomposed, as in PiSSA, and the smaller of the
two ranks is taken. The elbow is the term farthest below the straight line from the first singular value to the last. `largest` is ours.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from luthier.host.part import Start, method
from luthier.host.places import WeightEdit
from luthier.host.places.remade import remade
from luthier.sources.kronecker import Split, kron, product, spectrum, split
from luthier.starts.kronecker import KroneckerComponents


def by_energy(sigma: Tensor, energy: float) -> int:
    """The fewest terms whose squares are this share of all."""
    share = sigma.square().cumsum(0) / sigma.square().sum().clamp(min=torch.finfo(sigma.dtype).tiny)
    return min(int((share < energy * (1 - 1e-12)).sum()) + 1, len(sigma))


def by_elbow(sigma: Tensor) -> int:
    """The terms in front of the elbow: the point farthest below the line from the first singular value to the last."""
    line = torch.linspace(float(sigma[0]), float(sigma[-1]), len(sigma), dtype=sigma.dtype)
    return max(1, int((line - sigma).argmax()))


@method("soka", targets="*attention.query | *attention.value", rate=1e-3, identity_start=True)
class SoKA(WeightEdit):
    energy: Annotated[float, Field(gt=0, le=1)] = 0.9  # share of the squared singular values that is kept
    elbow: bool = True  # whether no term behind the spectrum's elbow is kept
    largest: PositiveInt = 16  # terms that a layer has at most
    m1: NonNegativeInt = 0  # rows of the left factor, at most; 0: the square root of the weight's
    n1: NonNegativeInt = 0  # columns of the left factor, at most; 0: the square root of the weight's
    start: Start = KroneckerComponents()  # how U and V begin

    def split(self, site) -> Split:
        return split(site.out_features, site.in_features, self.m1, self.n1)

    def first_layout(self, site, weight):
        if weight is None:
            return self.layout(site)
        sigma = spectrum(weight, self.split(site))
        rank = by_energy(sigma, self.energy)
        return {"rank": min(rank, self.largest, by_elbow(sigma) if self.elbow else rank)}

    def layout(self, site):
        return {"rank": 1}

    def tensors(self, site, layout):
        s = self.split(site)
        return {"U": (layout["rank"], s.a1, s.a2), "V": (layout["rank"], s.b1, s.b2)}

    def delta(self, weight, t):
        return kron(t.U, t.V)

    def shortcut(self, x, y, t):
        return y + remade(product, x, t.U, t.V)
