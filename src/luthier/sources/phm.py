"""Matrices as sums of Kronecker products whose left factors all sites share (Karimi Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers").

W = sum_i A_i kron (s_i t_i)    A: (pieces, pieces, pieces), one for all sites and all matrices: the slow weights
s: (pieces, length / pieces, rank)  t: (pieces, rank, row / pieces), of each matrix (length, row): the fast weights
trained: pieces * pieces * pieces + sites * (rank * (2 * width + 2 * out) + width + out)
Vectors (biases) are kept as they are. `luthier.sources.settle` multiplies the sums out.

Where the start makes a matrix zero, s is zero and t is not; else s and t are drawn so that the sum's numbers have the variance that the start drew.
"""

from __future__ import annotations

from pydantic import PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Source, Spec, normal, register, zeros
from luthier.sources.kronecker import kron


@register("phm")
class PHM(Source):
    pieces: PositiveInt = 4  # n: terms of each sum, and the sides of the shared factors
    rank: PositiveInt = 1  # of each right factor

    def specs(self, part, site, layout, wanted):
        made = {}
        for name, one in wanted.items():
            if len(one.shape) == 1:
                made[name] = one
                continue
            length, row = self.divided(part, site, name, one.shape)
            made[f"{name}_s"] = Spec((self.pieces, length, self.rank), zeros)
            made[f"{name}_t"] = Spec((self.pieces, self.rank, row), normal(row**-0.5))
        return made

    def divided(self, part, site, name, shape) -> tuple[int, int]:
        """The sides of a matrix over `pieces`. OptionError for what is no matrix, or doesn't divide."""
        if len(shape) != 2:
            raise OptionError(
                f"source phm: the tensor {name} of {part.name} at {site.name} is no matrix. Choose source=free."
            )
        if any(side % self.pieces for side in shape):
            raise OptionError(
                f"source phm: pieces={self.pieces} does not divide {shape[0]} x {shape[1]}, the sides of {name} at {site.name}. Choose a divisor of both."
            )
        length, row = (side // self.pieces for side in shape)
        if self.rank > min(length, row):
            raise OptionError(
                f"source phm: rank={self.rank} is above {min(length, row)}, the smaller side of the right factors of {name} at {site.name}. Choose a smaller rank or fewer pieces."
            )
        return length, row

    def shared(self, part, wanted):
        n = self.pieces
        return {"A": Spec((n, n, n), normal(n**-0.5))}

    def begin(self, part, site, draw):
        first, second = draw(), draw()
        out = {}
        for name, value in first.items():
            if value.dim() == 1:
                out[name] = value
            elif value.any():
                if value.equal(second[name]):
                    raise OptionError(
                        f"source phm: the start of {part.name} gives {name} at {site.name} values that are not drawn, which few sums of Kronecker products are. Choose a random start, or source=free."
                    )
                scale = value.std().rsqrt() * self.rank**-0.25
                out[f"{name}_s"] = scale * value[:, : self.rank].reshape(self.pieces, -1, self.rank)
                rows = second[name][: self.rank].unflatten(1, (self.pieces, -1))
                out[f"{name}_t"] = scale * rows.transpose(0, 1)
        return out

    def make(self, part, site, t, ctx, made=None):
        return {
            name: t[name] if name in t else kron(t.A, t[f"{name}_s"] @ t[f"{name}_t"])
            for name in part.tensors(site, t.layout)
        }
