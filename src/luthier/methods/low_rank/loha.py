"""LoHa: the Hadamard product of two low-rank products (Hyeon-Woo et al. 2022, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning"; Yeh et al. 2023, LyCORIS).

dW = (alpha / rank) (B1 A1) * (B2 A2), elementwise    A1, A2: (rank, in)  B1, B2: (out, rank)
trained: 2 * rank * (in + out) per site
Step 0 is the base (B2 = 0; B1 normal with deviation 0.1, A1 and A2 with 1, as in LyCORIS). Merging adds dW, whose rank is at most rank^2.
On activations the product is a low-rank update of rank^2 columns, made of the four factors for each use.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from luthier.host.part import Spec, method, normal, zeros
from luthier.host.places import WeightEdit
from luthier.host.places.remade import remade


def hadamard(b1: Tensor, a1: Tensor, b2: Tensor, a2: Tensor) -> Tensor:
    """(B1 A1) * (B2 A2): (..., out, in)."""
    return (b1 @ a1) * (b2 @ a2)


def applied(x: Tensor, b1: Tensor, a1: Tensor, b2: Tensor, a2: Tensor) -> Tensor:
    """x ((B1 A1) * (B2 A2))^T through rank^2 columns: x (A1 o A2)^T (B1 o B2)^T, o by rows of A and by columns of B."""
    down = (a1.unsqueeze(-2) * a2.unsqueeze(-3)).flatten(-3, -2)  # (rank^2, in)
    up = (b1.unsqueeze(-1) * b2.unsqueeze(-2)).flatten(-2)  # (out, rank^2)
    return x @ down.mT @ up.mT


@method("loha", targets="*attention.query | *attention.value", rate=2e-3, identity_start=True)
class LoHa(WeightEdit):
    rank: PositiveInt = 8  # of each product, at most min(in, out) of every site
    alpha: NonNegativeFloat = 8.0  # the update is scaled by alpha / rank

    folds = True

    def tensors(self, site, layout):
        down, up = (self.rank, site.in_features), (site.out_features, self.rank)
        return {
            "B1": Spec(up, normal(0.1)),
            "A1": Spec(down, normal(1.0)),
            "B2": Spec(up, zeros),
            "A2": Spec(down, normal(1.0)),
        }

    def delta(self, weight, t):
        return self.alpha / self.rank * hadamard(t.B1, t.A1, t.B2, t.A2)

    def shortcut(self, x, y, t):
        return y + self.alpha / self.rank * remade(applied, x, t.B1, t.A1, t.B2, t.A2)

    def check(self, sites):
        self.check_rank(self.rank, sites)
