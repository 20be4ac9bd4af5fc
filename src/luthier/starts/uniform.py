"""A start of random vectors: uniform between -bound and bound (Lester et al. 2021 draw a prompt so, with 0.5)."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat

from luthier.host.part import Start, register


@register("uniform")
class Uniform(Start):
    bound: PositiveFloat = 0.5  # largest value

    def fill(self, site, specs, weight, statistics, rng):
        return {n: (2 * torch.rand(s.shape, generator=rng) - 1) * self.bound for n, s in specs.items()}
