"""What WaveFT and FourierFT share: coefficients at fixed random positions, and the inverse of a transform."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import linear

from luthier.errors import OptionError
from luthier.host.options import options
from luthier.host.part import Start, zero
from luthier.host.places import WeightEdit
from luthier.host.places.remade import remade
from luthier.sources.seeded import seeded_positions
from luthier.sources.transforms import inverse, map_size


def scattered(c: Tensor, positions: Tensor, size: tuple[int, int]) -> Tensor:
    """The map with c at these flat positions: (..., count) -> (..., *size)."""
    empty = c.new_zeros(*c.shape[:-1], size[0] * size[1])
    return empty.scatter(-1, positions, c).unflatten(-1, size)


@options
class Coefficients(WeightEdit):
    """dW = alpha * inverse(C), C zero but for c at `count` positions. `transform` and `wavelet`: see `luthier.sources.transforms`."""

    count: PositiveInt = 1000  # coefficients of a layer, at most as many as its map has
    alpha: PositiveFloat = 1.0  # the update is multiplied by it
    seed: NonNegativeInt = 0  # of the positions: adaptations of one seed have the same
    start: Start = zero("c")  # how c begins

    if TYPE_CHECKING:
        transform: str
        wavelet: str
    folds: ClassVar[bool] = True

    def size(self, outputs: int, inputs: int) -> tuple[int, int]:
        """(rows, columns) of the map for a weight."""
        return map_size(outputs, inputs, self.transform, self.wavelet)

    def tensors(self, site, layout):
        rows, columns = self.size(site.out_features, site.in_features)
        where = seeded_positions(self.count, rows * columns, self.seed, f"{site.name} positions")
        return {"c": (self.count,), "positions": where}

    def update(self, outputs: int, inputs: int, c: Tensor, positions: Tensor) -> Tensor:
        """The change without alpha: (..., outputs, inputs)."""
        coefficients = scattered(c, positions, self.size(outputs, inputs))
        return inverse(coefficients, outputs, inputs, self.transform, self.wavelet)

    def delta(self, weight, t):
        outputs, inputs = weight.shape
        return self.alpha * self.update(outputs, inputs, t.c, t.positions)

    def shortcut(self, x, y, t):
        return y + self.alpha * remade(partial(_applied, self, y.shape[-1]), x, t.c, t.positions)

    def check(self, sites):
        for s in sites:
            rows, columns = self.size(s.out_features, s.in_features)
            if self.count > rows * columns:
                raise OptionError(
                    f"{self.name}: count={self.count} is above {rows * columns}, the coefficients that {s.name} has. Choose a smaller count."
                )


def _applied(part: Coefficients, outputs: int, x: Tensor, c: Tensor, positions: Tensor) -> Tensor:
    change = part.update(outputs, x.shape[-1], c, positions)
    return linear(x, change) if change.dim() == 2 else x @ change.mT
