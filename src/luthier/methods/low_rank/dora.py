"""DoRA: a magnitude for each output beside a low-rank change of direction (Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank
Adaptation").

W' = (m / |V|) V,  V = W + (alpha / rank) B A    |V|: (out,), of each output's row, held constant in the backward pass as the paper does
A: (rank, in)  B: (out, rank)  m: (out,), starts as |W|    trained: rank * (in + out) + out per site
Step 0 is the base (B = 0). Merging writes W'. W' is made again in the backward pass: no changed weight is kept for it.

Differs: no dropout, which would ask for two passes. With an anchored start V is W + (alpha / rank) (B A - B_0 A_0).
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from luthier.host.part import Spec, method
from luthier.host.places import Factors
from luthier.methods.low_rank.pair import Pair


def row_norms(weight: Tensor) -> Tensor:
    """(out,) norms of the rows of (out, in), in float32 at least: m starts as these, and they must then cancel exactly."""
    return (weight.float() if weight.itemsize < 4 else weight).contiguous().norm(dim=1)


def changed_row_norms(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """(out,) norms of the rows of W + up down, which is not made: |W|^2 + 2 <W down^T, up> + <up down down^T, up>, row by row."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    weight, up, down = weight.to(exact), up.to(exact), down.to(exact)
    cross = 2 * (weight @ down.mT) + up @ (down @ down.mT)
    # a row that the change takes away has no length: rounding must not make its square negative
    return (row_norms(weight).square() + (cross * up).sum(1)).clamp_min(0).sqrt()


@method("dora", targets="*attention.query | *attention.value", rate=2e-3, identity_start=True)
class DoRA(Pair):
    alpha: NonNegativeFloat = 16.0  # the change of direction is scaled by alpha / rank

    takes_start_off = True

    def gain(self):
        return self.alpha / self.rank

    def tensors(self, site, layout):
        return {**super().tensors(site, layout), "m": Spec((site.out_features,), of_weight=row_norms)}

    def delta(self, weight, t):
        factors = Factors(t.B, t.A)
        if t.start is not None:
            factors = factors.less(Factors(t.start.B, t.start.A))
        up, down = self.gain() * factors.up, factors.down
        with torch.no_grad():
            lengths = changed_row_norms(weight, up, down).to(t.m.dtype)
        share = (t.m / lengths)[:, None]
        return torch.addcmul((share * up) @ down, weight, share - 1)  # share (W + up down) - W
