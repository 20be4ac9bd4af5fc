"""Prompts made from the instruction's hidden states by pooling with learned queries (Zhu et al. 2024, "IAPT", S284).

X = H Wd^T; Z = softmax(Q X^T / sqrt(inner)) X; P = r(Z) Wu^T    H: (tokens, width), the instruction where it enters the block
Wd: (inner, width)  Q: (length, inner)  Wu: (width, inner)    r(x) = sum_{i <= 6} a_i x^i / (1 + |sum_{1 <= i <= 5} b_i x^i|)
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from luthier.host.part import Draw, Source, Spec, normal, register
from luthier.sources.instruction import entering, masked_softmax, prompt_shape

GELU_ABOVE = (
    -2.85982323e-3,
    0.499999963,
    0.416056073,
    0.1110321,
    6.47527361e-3,
    -1.39365266e-3,
    -1.55075829e-4,
)
GELU_BELOW = (4.42753315e-6, -0.22206785, 1.09693364e-6, 2.78716361e-3, 6.62612046e-9)
"""Coefficients of r that are nearest to GELU on [-6, 6]."""


def rational(x: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """r(x), in float32 or more. above: (7,) from the constant on; below: (5,) from the first power on; no pole anywhere."""
    work = x.to(torch.promote_types(x.dtype, torch.float32))
    top, bottom = torch.zeros_like(work), torch.zeros_like(work)
    for a in reversed(above.to(work.dtype).unbind(-1)):
        top = top * work + a
    for b in reversed(below.to(work.dtype).unbind(-1)):
        bottom = (bottom + b) * work
    return (top / (1 + bottom.abs())).to(x.dtype)


def fixed(values: tuple[float, ...]) -> Draw:
    """A start at these numbers."""
    return lambda shape, rng: torch.tensor(values).expand(shape).clone()


@register("pooled")
class Pooled(Source):
    """trained: 2 * inner * width + length * inner + 12 * sites (with share, the first terms for each generator)"""

    inner: PositiveInt = 32  # width of the pooled vectors
    share: NonNegativeInt = (
        0  # so many blocks in a row share a generator; 0: all do. Each has its own activation
    )

    by_row = True

    def specs(self, part, site, layout, wanted):
        prompt_shape(self.name, part, site, layout)
        return {"a": Spec((7,), fixed(GELU_ABOVE)), "b": Spec((5,), fixed(GELU_BELOW))}

    def begin(self, part, site, draw):
        return {}

    def shared(self, part, wanted):
        (length, width), *_ = (next(iter(specs.values())).shape for specs in wanted.values())
        made = {}
        for g in sorted(set(self.generators(wanted).values())):
            made[f"Wd_{g}"] = Spec((self.inner, width), normal(width**-0.5))
            made[f"Q_{g}"] = Spec((length, self.inner), normal(1.0))
            made[f"Wu_{g}"] = Spec((width, self.inner), normal(self.inner**-0.5))
        return made

    def generators(self, wanted):
        """{site: the generator that it uses}."""
        return {name: i // self.share if self.share else 0 for i, name in enumerate(wanted)}

    def prepare(self, part, t, wanted, ctx):
        return self.generators(wanted)

    def make(self, part, site, t, ctx, made=None):
        name, length, width = prompt_shape(self.name, part, site, t.layout)
        g = made[site.name]
        read = entering(site, ctx)
        if read is None:
            return {name: t["a"].new_zeros(length, width)}
        h, seen = read
        down, queries, up = (t[f"{k}_{g}"].to(h.dtype) for k in ("Wd", "Q", "Wu"))
        x = h @ down.mT
        pooled = masked_softmax(queries @ x.mT / self.inner**0.5, seen) @ x
        return {name: rational(pooled, t["a"], t["b"]) @ up.mT}
