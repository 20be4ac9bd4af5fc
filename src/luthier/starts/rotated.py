"""A start for edits in a subspace: a random orthonormal R, W equal to it or drawn apart, everything else zero (Wu et al. 2024)."""

from __future__ import annotations

import torch

from luthier.host.part import Start, register, uniform
from luthier.sources.orthonormal import orthonormal_rows


@register("rotated")
class Rotated(Start):
    apart: bool = (
        False  # draw W apart from R, as the public code does, so that step 0 is not the base; off: W = R
    )

    def fill(self, site, specs, weight, statistics, rng):
        out = {k: torch.zeros(s.shape) for k, s in specs.items()}
        out["R"] = orthonormal_rows(torch.randn(specs["R"].shape, generator=rng))
        if self.apart:
            out["W"] = uniform(specs["W"].shape[-1] ** -0.5)(specs["W"].shape, rng)
        else:
            out["W"] = orthonormal_rows(out["R"])  # as the source makes R, to the bit
        return out
