"""The start of a trained magnitude: the lengths of a weight's output rows or channels (Liu et al. 2024, "DoRA")."""

from __future__ import annotations

from luthier.host.part import Start, register
from luthier.sources.kernels import norms


@register("magnitude")
class Magnitude(Start):
    """m = |W| for every output; all other tensors begin as the part says."""

    def fill(self, site, specs, weight, statistics, rng):
        return {name: norms(weight.float(), weight.dim() - 1) for name in specs}
