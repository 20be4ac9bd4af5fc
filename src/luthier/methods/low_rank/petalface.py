"""PETALface: two low-rank updates, blended by a number that comes with each row (Narayan et al. 2025, "PETALface: Parameter Efficient Transfer
Learning for Low-resolution Face Recognition", S199).

y = W x + (alpha / rank) (q B_h A_h x + (1 - q) B_l A_l x)    q in 0..1: the row's share of the high one, at all sites and tokens
A = [A_h; A_l]: (2 rank, in)  B = [B_h B_l]: (out, 2 rank)    at `projection` one plain LoRA: (rank, in), (out, rank)
trained: 2 * rank * (in + out) per site (of the projection: rank * (in + out))
q = min(1, max(0, 1/2 + slope (c - threshold))), c a column of the data (`--covariate quality`) or, of images, `--covariate sharpness`, which
is measured; threshold: the training rows' mean. It reads one when told which: --set covariate=0. Without, every q is 1/2.
Step 0 is the base (B = 0). Merging adds the blend for one number: `adapted.merge(name, covariates=[[0.8]])`.

Differs: quality is the sharpness of `luthier.data.covariates` or a number of the user's instead of CNN-IQA and BRISQUE; q is kept within 0..1; a
fused layer's query, key and value have a pair each; the head is the task's own, without a margin; dropout is 0.1 in the paper. Which layer
projects the features is said by `projection` (a name, or pooler, or mlp.down[-1:] where there is none behind the blocks): no role is theirs in all models.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import dropout

from luthier.host.options import options
from luthier.host.part import Free, Method, Phase, Source, method
from luthier.methods.low_rank.lora import LoRA
from luthier.sources.by_covariate import ByCovariate, settle_thresholds


def blended(h: Tensor, q: Tensor | float) -> Tensor:
    """[q h_1, (1 - q) h_2] of h = [h_1, h_2]: (..., 2 rank)."""
    high, low = h.chunk(2, -1)
    return torch.cat([q * high, (1 - q) * low], -1)


@options
class BlendedLoRA(LoRA):
    """Two pairs at every site, their ranks side by side.

    trained: 2 * rank * (in + out) per site
    """

    blends: ClassVar[bool] = True
    """It reads a share q of each row (`luthier.sources.by_covariate`)."""

    def tensors(self, site, layout):
        (down, into), (out, up) = super().tensors(site, layout).values()
        return {"A": (2 * down, into), "B": (out, 2 * up)}

    def pair(self, t):
        return blended(t.B, t.get("q", 0.5)), t.A

    def shortcut(self, x, y, t):
        x = dropout(x, self.dropout) if self.dropout and t.training else x
        q = t.get("q", 0.5)
        if isinstance(q, Tensor) and q.dim() and len(q) != len(x):  # an image's windows, one after the other
            q = q.repeat_interleave(len(x) // len(q), 0)
        return y + blended(x @ t.A.mT, q) @ t.B.mT * self.gain()


@method(
    "petalface",
    targets="*attention.query | *attention.key | *attention.value",
    rate=2e-3,
    identity_start=True,
)
class PETALface(Method):
    rank: PositiveInt = 8  # of each pair
    alpha: NonNegativeFloat = 8.0  # updates are scaled by alpha / rank
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the paper: 0.1; on the updates' input while training
    covariate: NonNegativeInt | None = (
        None  # which of the rows' covariates q is made of, from 0; None: q = 1/2
    )
    threshold: float | None = None  # the covariate at which q is one half; None: the training rows' mean
    slope: PositiveFloat = 1.0  # how much q rises when the covariate rises by one
    projection: str = ""  # the last layer of the features, by role or name, with one plain LoRA; empty: none

    def parts(self):
        shared: dict[str, Any] = {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout}
        source: Source = Free()
        if self.covariate is not None:
            source = ByCovariate(covariate=self.covariate, threshold=self.threshold, slope=self.slope)
        pairs = BlendedLoRA(targets=self.targets, source=source, **shared)
        return (pairs, LoRA(targets=self.projection, **shared)) if self.projection else (pairs,)

    def phases(self):
        return (Phase("train", enter=None if self.covariate is None else settle_thresholds),)
