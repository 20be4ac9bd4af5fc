"""A start from another adaptation: what it holds, or what its source makes, at the same sites (`luthier.fit(..., after=it)`).

Prompt transfer in its plain form (Vu et al. 2022, SPoT), and low-shot tuning from a sum of prompt vectors (S351).
"""

from __future__ import annotations

from luthier.errors import OptionError
from luthier.host.part import Start, register


@register("carried")
class Carried(Start):
    needs = ("carried",)

    def fill(self, site, specs, weight, statistics, rng):
        held = statistics["carried"]
        for name, spec in specs.items():
            found = tuple(held[name].shape) if name in held else None
            if found != tuple(spec.shape):
                raise OptionError(
                    f"after: at {site.name} this method wants {name} of shape {tuple(spec.shape)}, and the other adaptation "
                    f"has {found or 'none'} there. Give equal lengths and the same kind of method."
                )
        return {name: held[name].detach().float().cpu() for name in specs}
