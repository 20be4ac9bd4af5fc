"""A shared prompt times a product of thin factors (Wang et al. 2023, "Multitask Prompt Tuning", S070).

P_k = P * (U V)    P: (length, row), shared by tasks  U: (length, rank)  V: (rank, row), of one task; * is elementwise
trained: tensors * (length * row + rank * (length + row)) per site (with train_shared=False: rank * (length + row))
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt

from luthier.host.part import Source, Spec, normal, register
from luthier.sources.rows import from_rows, shapes, size, to_rows


def one_first(shape: tuple[int, ...], dim: int, rest: torch.Tensor) -> torch.Tensor:
    """Ones in the first row (dim 0) or column (dim 1), `rest` in the others."""
    out = rest.clone()
    out.select(dim, 0).fill_(1.0)
    return out


@register("rank_one")
class RankOne(Source):
    rank: PositiveInt = 1  # of the product
    initial: Literal["ones", "normal"] = (
        "ones"  # the product is 1 everywhere, so that P_k = P, or its factors are normal, as in the public code
    )
    std: PositiveFloat = 0.02  # standard deviation of normal factors
    train_shared: bool = True  # whether the shared prompt trains too; off: only the factors do

    def specs(self, part, site, layout, wanted):
        draw = normal(self.std)

        def u(shape, rng):
            return one_first(shape, 1, torch.zeros(shape)) if self.initial == "ones" else draw(shape, rng)

        def v(shape, rng):
            return one_first(shape, 0, draw(shape, rng)) if self.initial == "ones" else draw(shape, rng)

        made = {}
        for name, spec in wanted.items():
            length, row = size(part, name, spec.shape)
            made[name] = spec._replace(trained=self.train_shared)
            made[f"{name}_u"] = Spec((length, self.rank), u)
            made[f"{name}_v"] = Spec((self.rank, row), v)
        return made

    def make(self, part, site, t, ctx, made=None):
        return {
            name: from_rows(to_rows(t[name]) * (t[f"{name}_u"] @ t[f"{name}_v"]), shape)
            for name, shape in shapes(part, site, t.layout).items()
        }
