"""DiffuseKronA: a Kronecker product as the update of a linear weight (Marjit et al. 2024, "DiffuseKronA: A Parameter Efficient Fine-tuning Method for Personalized Diffusion Model", S337).

dW = alpha * (A kron B)    A: (a1', a2')  B: (out / a1', in / a2'); a1' and a2' are the largest divisors of out and in up to a1 and a2
trained: divisor(out,a1) * divisor(in,a2) + (out // divisor(out,a1)) * (in // divisor(in,a2)) per site
Step 0 is the base (B = 0). Merging adds dW. rank(dW) = rank(A) rank(B): full rank is possible. On activations dW is never made:
x is viewed as a matrix (a2', in / a2'), and A X B^T is viewed flat again.
The targets and a1, a2 are those of the paper for a diffusion UNet: its attention's four projections.

Differs: where a1 or a2 does not divide a side, the next smaller divisor is taken.
"""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from luthier.host.part import Spec, method, normal, zeros
from luthier.host.places import WeightEdit
from luthier.host.places.remade import remade
from luthier.sources.kronecker import kron, product, split


@method("diffusekrona", targets="*attention.*", rate=1e-3, identity_start=True)
class DiffuseKronA(WeightEdit):
    a1: PositiveInt = 64  # rows of the left factor, at most
    a2: PositiveInt = 8  # columns of the left factor, at most
    alpha: PositiveFloat = 1.0  # the update is scaled by it

    def tensors(self, site, layout):
        s = split(site.out_features, site.in_features, self.a1, self.a2)
        return {"A": Spec((s.a1, s.a2), normal(1 / s.a1)), "B": Spec((s.b1, s.b2), zeros)}

    def delta(self, weight, t):
        return self.alpha * kron(t.A.unsqueeze(-3), t.B.unsqueeze(-3))

    def shortcut(self, x, y, t):
        return y + self.alpha * remade(product, x, t.A.unsqueeze(-3), t.B.unsqueeze(-3))
