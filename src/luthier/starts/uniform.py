"""A start of random vectors: uniform between -bound and bound (Lester et al. 2021 draw a prompt so, with 0.5)."""

from __future__ import annotations

from pydantic import PositiveFloat

from luthier.host.part import Start, register, uniform


@register("uniform")
class Uniform(Start):
    bound: PositiveFloat = 0.5  # largest value

    def fill(self, site, specs, weight, statistics, rng):
        return {n: uniform(self.bound)(s.shape, rng) for n, s in specs.items()}
