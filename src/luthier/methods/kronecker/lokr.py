"""LoKr: a Kronecker product whose right factor is low-rank (Yeh et al. 2023, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation").

dW = (alpha / rank) (C kron B A)    C: (a1, a2)  B: (out / a1, rank)  A: (rank, in / a2)
a1, a2: the largest divisors of out and in up to `factor`.
trained: divisor(out,factor) * divisor(in,factor) + rank * (out // divisor(out,factor) + in // divisor(in,factor)) per site
Step 0 is the base (C = 0). Merging adds dW, whose rank is at most rank(C) * rank.

Differs: B A takes the place of a whole right factor at every rank, and C is never itself a product.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Start, method, zero
from luthier.host.places import WeightEdit
from luthier.host.places.remade import remade
from luthier.sources.kronecker import kron, product, split


@method("lokr", targets="*attention.query | *attention.value", rate=2e-3, identity_start=True)
class LoKr(WeightEdit):
    rank: PositiveInt = 8  # of the right factor, at most the smaller of its sides
    alpha: NonNegativeFloat = 8.0  # the update is scaled by alpha / rank
    factor: NonNegativeInt = (
        8  # rows and columns of the left factor, at most; 0: the square root of each side
    )
    start: Start = zero("C")  # how C, B and A begin

    def tensors(self, site, layout):
        s = split(site.out_features, site.in_features, self.factor, self.factor)
        return {"C": (s.a1, s.a2), "B": (s.b1, self.rank), "A": (self.rank, s.b2)}

    def delta(self, weight, t):
        return self.alpha / self.rank * kron(t.C.unsqueeze(-3), (t.B @ t.A).unsqueeze(-3))

    def shortcut(self, x, y, t):
        return y + self.alpha / self.rank * remade(_product, x, t.C, t.B, t.A)

    def check(self, sites):
        for site in sites:
            s = split(site.out_features, site.in_features, self.factor, self.factor)
            if self.rank > min(s.b1, s.b2):
                raise OptionError(
                    f"{self.name}: rank={self.rank} is above {min(s.b1, s.b2)}, the smaller side of the right factor ({s.b1}, {s.b2}) at {site.name}. Choose a smaller rank or a smaller factor."
                )


def _product(x, c, b, a):
    return product(x, c.unsqueeze(-3), (b @ a).unsqueeze(-3))
