"""A start for prefixes that were summed up (`luthier.sources.kernel`): nothing, or a drawn prefix of any length."""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveFloat

from luthier.host.part import Spec, Start, register
from luthier.sources.kernel import of_prefix
from luthier.starts.normal import Normal


@register("prefix_kernel")
class PrefixKernel(Start):
    length: NonNegativeInt = 0  # tokens of the prefix that Z and k begin as; 0: Z = 0, and k = mass
    prefix: Start = Normal()  # keys and values of that prefix
    mass: PositiveFloat = 0.01  # what every positive feature counts without a prefix

    def fill(self, site, specs, weight, statistics, rng):
        heads, number, dim = specs["Z"].shape
        if not self.length:
            k = torch.zeros(heads, number)
            k[:, : 1 if number > dim else None] = (
                self.mass
            )  # of Taylor features only the constant is positive
            return {"Z": torch.zeros(heads, number, dim), "k": k}
        like = dict.fromkeys(("K", "V"), Spec((heads, self.length, dim)))
        drawn = self.prefix.fill(site, like, weight, statistics, rng)
        z, k = of_prefix(drawn["K"].double(), drawn["V"].double(), site.scaling, number)
        return {"Z": z.float(), "k": k.float()}
