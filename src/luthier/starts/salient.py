"""Salient channels: a small square map of those that a task's classes use most (Zhao et al. 2023, S026).

The L2 norm of every channel over the rows and tokens of one class, a mean over classes, says how salient it is. It decides the layout;
the map itself begins with normal values.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Start, register


@register("salient")
class Salient(Start):
    """Outside a fit, where no rows are known, the first channels are taken."""

    which: Literal["largest", "random", "smallest"] = "largest"  # which channels; the others are controls
    rows: PositiveInt = 1000  # training rows that decide, classes in turn
    draw: NonNegativeInt = 0  # seed of random channels
    std: NonNegativeFloat = 0.02  # of the map's first values; 0: step 0 is the base

    uses = ("class_norms",)

    def layouts(self, part, sites, statistics):
        if not hasattr(part, "channels_of"):
            return None  # fill says what this start is for
        found = {
            s.name: self.chosen(s, statistics.get(s.name, {}), part.channels_of(s), part.stream)
            for s in sites
        }
        return None if None in found.values() else {name: {"channels": own} for name, own in found.items()}

    def chosen(self, site, statistics, count: int, stream: bool) -> list[int] | None:
        """`count` channels of a site, rising; None where no rows are known."""
        if self.which == "random":
            rng = torch.Generator().manual_seed(self.draw * 1_000_003 + (site.layer or 0))
            return sorted(torch.randperm(site.out_features, generator=rng)[:count].tolist())
        if "class_norms" not in statistics:
            return None
        norms = statistics["class_norms"](site, stream, self.rows)
        order = norms.argsort(descending=self.which == "largest", stable=True)
        return sorted(order[:count].tolist())

    def fill(self, site, specs, weight, statistics, rng):
        if set(specs) != {"W"}:
            raise OptionError(
                f"start 'salient' begins a map of channels W, not {', '.join(specs)}. Choose another start."
            )
        return {n: (torch.randn(s.shape, generator=rng) * self.std).clamp(-2, 2) for n, s in specs.items()}
