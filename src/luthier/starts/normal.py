"""A start of random vectors: normal with one standard deviation."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat

from luthier.host.part import Start, register


@register("normal")
class Normal(Start):
    std: NonNegativeFloat = 0.5  # standard deviation

    def fill(self, site, specs, weight, statistics, rng):
        return {n: torch.randn(s.shape, generator=rng) * self.std for n, s in specs.items()}
