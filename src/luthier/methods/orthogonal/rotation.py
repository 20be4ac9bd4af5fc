"""What OFT and BOFT share: the input of a linear layer, turned block by block."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import PositiveInt
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.options import options
from luthier.host.part import Spec, zeros
from luthier.host.places import WeightEdit
from luthier.host.places.remade import remade
from luthier.sources.orthogonal import butterfly, cayley, turned


@options
class Rotation(WeightEdit):
    """W <- W R, y = W (R x); R by Cayley's transform of q, a butterfly of `levels` factors with blocks of `block`."""

    block: PositiveInt = 8  # numbers that are turned together

    if TYPE_CHECKING:
        levels: int

    def tensors(self, site, layout):
        blocks = self.levels * (site.in_features // self.block)
        return {"q": Spec((blocks, self.block * (self.block - 1) // 2), zeros)}

    def before(self, x, t):
        if self.levels == 1:  # what is kept beside x is no more than q
            return turned(x, remade(partial(cayley, size=self.block), t.q))
        return remade(partial(_rotated, self.block, self.levels), x, t.q)

    def delta(self, weight, t):  # a row w of W becomes w R = (R^T w)^T
        r = cayley(t.q, self.block).to(weight.dtype)
        return butterfly(weight, r, self.levels, back=True) - weight

    def check(self, sites):
        apart = 2 ** (self.levels - 1)
        fits = lambda block, width: (
            block > 1 and width % (block * apart) == 0 and (apart == 1 or block % 2 == 0)
        )
        for s in sites:
            if not fits(self.block, s.in_features):
                others = [str(b) for b in range(2, s.in_features + 1) if fits(b, s.in_features)]
                many = f" with levels={self.levels}" if self.levels > 1 else ""
                raise OptionError(
                    f"{self.name}: block={self.block}{many} does not divide the {s.in_features} inputs of {s.name}. "
                    + (
                        f"Choose block={', '.join(others)}."
                        if others
                        else "Choose fewer levels, or other targets."
                    )
                )


def _rotated(block: int, factors: int, x: Tensor, q: Tensor) -> Tensor:
    return butterfly(x, cayley(q, block), factors)
