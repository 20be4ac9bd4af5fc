"""LoRA: low-rank updates of linear weights (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").

dW = (alpha / rank) B A    A: (rank, in)  B: (out, rank)    trained: rank * (in + out) per site
Step 0 is the base (B = 0). Merging adds dW to the weight. Dropout, if any, acts on the update's input.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import dropout, linear

from luthier.errors import OptionError
from luthier.host.part import Start, method, zero
from luthier.host.places import Factors, WeightEdit


def low_rank(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * B A: (out, in)."""
    return scale * (b @ a)


@method("lora", targets="*attention.query | *attention.value", rate=2e-3, identity_start=True)
class LoRA(WeightEdit):
    rank: PositiveInt = 8  # at most min(in, out) of every site
    alpha: NonNegativeFloat = 16.0  # the update is scaled by alpha / rank
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # on the update's input while training
    start: Start = zero("B")  # how A and B begin

    def tensors(self, site, layout):
        return {"A": (self.rank, site.in_features), "B": (site.out_features, self.rank)}

    def delta(self, weight, t):
        return low_rank(t.A, t.B, self.alpha / self.rank)

    def factors(self, t):
        return Factors(t.B, t.A, self.alpha / self.rank, self.dropout if t.training else 0.0)

    def shortcut(self, x, y, t):
        x = dropout(x, self.dropout) if self.dropout and t.training else x
        if t.A.dim() == 2:
            return y + linear(linear(x, t.A), t.B) * (self.alpha / self.rank)
        return y + (x @ t.A.mT) @ t.B.mT * (self.alpha / self.rank)

    def check(self, sites):
        for s in sites:
            if self.rank > min(s.in_features, s.out_features):
                raise OptionError(
                    f"{self.name}: rank={self.rank} is above min(in, out)={min(s.in_features, s.out_features)} at {s.name}. Choose a smaller rank."
                )
