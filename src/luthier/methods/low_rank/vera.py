"""VeRA: trained scales around one pair of random matrices that all layers share (Kopiczko et al. 2024, "VeRA: Vector-based Random Matrix Adaptation").

dW = diag(b) B diag(d) A    A: (rank, in)  B: (out, rank), fixed, of a seed, cut from one pair to each site    d: (rank,)  b: (out,)
trained: rank + out per site
Step 0 is the base (b = 0; d is constant). Merging adds dW. A file holds the seed and the vectors: A and B are drawn again.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import linear

from luthier.host.functional import rowwise
from luthier.host.part import Spec, method, zeros
from luthier.host.places import WeightEdit
from luthier.host.places.remade import remade
from luthier.sources.peft_draws import vera_pair
from luthier.sources.seeded import kaiming, seeded


def scaled(x: Tensor, d: Tensor, b: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """b * (d * (x A^T)) B^T; d and b may be one a row. down, up: the shared pair, at least as large as the site's."""
    down, up = down[:, : x.shape[-1]].to(x.dtype), up[: b.shape[-1]].to(x.dtype)
    z = linear(x, down)
    y = linear(z * rowwise(d, z), up)
    return y * rowwise(b, y)


@method("vera", targets="*attention.query | *attention.value", rate=2e-2, identity_start=True)
class VeRA(WeightEdit):
    rank: PositiveInt = 256  # of the shared pair; it costs one trained number a site
    initial: PositiveFloat = 0.1  # what d begins as
    seed: NonNegativeInt = 0  # of the shared pair: adaptations of one seed have the same
    basis: Literal["own", "peft"] = (
        "own"  # peft: the pair that peft makes of the seed, sqrt(2) times as large
    )

    folds = True

    def tensors(self, site, layout):
        constant = lambda shape, rng: torch.full(shape, self.initial)
        return {"d": Spec((self.rank,), constant), "b": Spec((site.out_features,), zeros)}

    def shared(self, sites):
        inputs, outputs = max(s.in_features for s in sites), max(s.out_features for s in sites)
        if self.basis == "peft":
            down, up = vera_pair(self.rank, inputs, outputs, self.seed)
            return {"A": down, "B": up}
        return {
            "A": seeded((self.rank, inputs), kaiming, self.seed, "A"),
            "B": seeded((outputs, self.rank), kaiming, self.seed, "B"),
        }

    def delta(self, weight, t):
        outputs, inputs = weight.shape
        down, up = t.A[:, :inputs].to(weight.dtype), t.B[:outputs].to(weight.dtype)
        return (t.b[:, None] * up * t.d) @ down

    def shortcut(self, x, y, t):
        return y + remade(scaled, x, t.d, t.b, t.A, t.B)
