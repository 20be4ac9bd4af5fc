"""DoRA: a magnitude for each output beside a low-rank change of direction (Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank
Adaptation").

W' = (m / |V|) V,  V = W + (alpha / rank) B A    |V|: (out,), of each output's row, held constant in the backward pass as the paper does
A: (rank, in)  B: (out, rank)  m: (out,), starts as |W|    trained: rank * (in + out) + out per site
Step 0 is the base (B = 0). Merging writes W'. W' is made again in the backward pass: no changed weight is kept for it.

Differs: no dropout, which would ask for two passes. With an anchored start V is W + (alpha / rank) (B A - B_0 A_0).
"""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor

from luthier.host.part import Spec, method
from luthier.methods.low_rank.pair import Pair, low_rank


def row_norms(weight: Tensor) -> Tensor:
    """(out,) norms of the rows of (out, in), in float32 at least: m starts as these, and they must then cancel exactly."""
    return (weight.float() if weight.itemsize < 4 else weight).contiguous().norm(dim=1)


@method("dora", targets="*attention.query | *attention.value", rate=2e-3, identity_start=True)
class DoRA(Pair):
    alpha: NonNegativeFloat = 16.0  # the change of direction is scaled by alpha / rank

    takes_start_off = True

    def gain(self):
        return self.alpha / self.rank

    def tensors(self, site, layout):
        return {**super().tensors(site, layout), "m": Spec((site.out_features,), of_weight=row_norms)}

    def delta(self, weight, t):
        change = low_rank(t.A, t.B, self.gain())
        if t.start is not None:
            change = change - low_rank(t.start.A, t.start.B, self.gain())
        v = weight + change
        return (t.m / row_norms(v.detach()).to(t.m.dtype))[:, None] * v - weight
