"""A start for sums of Kronecker products: the largest terms of the weight itself (S268), their effect taken off again."""

from __future__ import annotations

from luthier.errors import OptionError
from luthier.host.part import Start, register
from luthier.sources.kronecker import Split, components


@register("kpsvd")
class KroneckerComponents(Start):
    """U_k, V_k with the root of sigma_k in each: their sum is the best of so many terms to the weight. Anchored: step 0 is the base."""

    anchored = True

    def fill(self, site, specs, weight, statistics, rng):
        if set(specs) != {"U", "V"} or weight is None:
            raise OptionError(
                f"start 'kpsvd' fills U and V of a sum of Kronecker products from a weight, but {site.name} wants {', '.join(sorted(specs))}. Use it with method soka."
            )
        (terms, a1, a2), (_, b1, b2) = specs["U"].shape, specs["V"].shape
        u, sigma, v = components(weight, Split(a1, a2, b1, b2))
        if not sigma[0]:
            raise OptionError(
                f"start 'kpsvd': the weight at {site.name} is zero, and factors of zero never train. Leave the site out of `targets`."
            )
        root = sigma[:terms, None, None].sqrt()
        return {"U": (root * u[:terms]).float(), "V": (root * v[:terms]).float()}
