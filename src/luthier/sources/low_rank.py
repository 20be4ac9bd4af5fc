"""A prompt or prefix as a product of two thin factors (Xiao et al. 2023, "Decomposed Prompt Tuning", S369).

P = A B    A: (length, rank)  B: (rank, row), row: the numbers of one token    trained: tensors * rank * (length + row) per site
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Source, Spec, register, uniform, zeros
from luthier.sources.rows import from_rows, shapes, size, to_rows


@register("low_rank")
class LowRank(Source):
    rank: PositiveInt = 8  # at most the length and the width
    initial: Literal["start", "random", "zero"] = (
        "start"  # factors of what the start gives (its best of this rank), both uniform, or A zero and B uniform
    )
    bound: PositiveFloat = 0.5  # largest value of random factors

    def specs(self, part, site, layout, wanted):
        drawn = uniform(self.bound)
        made = {}
        for name, spec in wanted.items():
            length, width = size(part, name, spec.shape)
            if self.rank > min(length, width):
                raise OptionError(
                    f"source low_rank: rank={self.rank} is above {min(length, width)}, the largest rank of {length} x {width} numbers at {site.name}."
                )
            first, second = {"random": (drawn, drawn), "zero": (zeros, uniform(width**-0.5))}.get(
                self.initial, (None, None)
            )
            made[f"{name}_A"] = Spec((length, self.rank), first)
            made[f"{name}_B"] = Spec((self.rank, width), second)
        return made

    def begin(self, part, site, draw):
        if self.initial != "start":
            return {}
        out = {}
        for name, value in draw().items():
            if not value.any():
                raise OptionError(
                    f"source low_rank: {part.name} starts {name} at zero, and two factors of zero never train. Set source.initial=zero."
                )
            u, s, v = torch.linalg.svd(to_rows(value).double(), full_matrices=False)
            root = s[: self.rank].sqrt()
            out[f"{name}_A"] = (u[:, : self.rank] * root).float()
            out[f"{name}_B"] = (root[:, None] * v[: self.rank]).float()
        return out

    def make(self, part, site, t, ctx, made=None):
        return {
            name: from_rows(t[f"{name}_A"] @ t[f"{name}_B"], shape)
            for name, shape in shapes(part, site, t.layout).items()
        }
