"""What low-rank methods share: two thin factors at every site, and the update that is their product."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import dropout, linear

from luthier.host.options import options
from luthier.host.part import Phase, Start, zero
from luthier.host.places import Factors, WeightEdit
from luthier.signals.lora_pro import lora_pro


def low_rank(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * B A: (out, in)."""
    return scale * (b @ a)


@options
class Pair(WeightEdit):
    """A: (rank, in) and B: (out, rank) at every site; a start may give each site a rank of its own."""

    rank: PositiveInt = 8  # at most min(in, out) of every site
    start: Start = zero("B")  # how A and B begin
    optimiser: Literal["adamw", "lora_pro"] = (
        "adamw"  # lora_pro: AdamW in the space of the whole weight (S173)
    )

    def tensors(self, site, layout):
        rank = layout.get("rank", self.rank)
        return {"A": (rank, site.in_features), "B": (site.out_features, rank)}

    def check(self, sites):
        self.check_rank(self.rank, sites)

    def phases(self):
        return (Phase("train", optimiser=lora_pro if self.optimiser == "lora_pro" else None),)


@options
class LowRank(Pair):
    """dW = gain() B A, also on activations."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # on the update's input while training

    def pair(self, t) -> tuple[Tensor, Tensor]:
        """The update's factors: (..., out, rank) and (..., rank, in)."""
        return t.B, t.A

    def delta(self, weight, t):
        up, down = self.pair(t)
        return low_rank(down, up, self.gain())

    def factors(self, t):
        return Factors(*self.pair(t), self.gain(), self.dropout if t.training else 0.0)

    def shortcut(self, x, y, t):
        x = dropout(x, self.dropout) if self.dropout and t.training else x
        up, down = self.pair(t)
        if down.dim() == 2:
            return y + linear(linear(x, down), up) * self.gain()
        return y + (x @ down.mT) @ up.mT * self.gain()
