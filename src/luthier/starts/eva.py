"""A start along the directions in which a layer's inputs vary, which also shares the ranks out over the sites (EVA, S144).

A: (r_l, in), the strongest directions of the centred inputs;  B = 0. Of all sites' directions the rank * sites with the largest shares of
their layer's variance are kept, at most rho * rank at one site. Batches are read until every kept direction stands still.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import Part, Start, register
from luthier.starts.principal_inputs import IncrementalPCA
from luthier.starts.singular import rank_of

NAME = "input_directions"


def allocated(
    shares: Mapping[str, Tensor], most: int, budget: int, costs: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Ranks by site: the directions with the largest shares, at most `most` at one site; of equals the first site's.

    costs: of a direction at each site, which all together are at most `budget`; None: `budget` is how many there are.
    """
    offered = [(-float(v), i, name) for i, (name, own) in enumerate(shares.items()) for v in own[:most]]
    ranks, left = dict.fromkeys(shares, 0), budget
    for _, _, name in sorted(offered):
        cost = 1 if costs is None else costs[name]
        if cost <= left:
            ranks[name], left = ranks[name] + 1, left - cost
    return ranks


def rank_option(part: Part) -> int:
    """The rank that a part was asked for. OptionError where it has none."""
    rank = getattr(part, "rank", None)
    if not isinstance(rank, int):
        raise OptionError(
            f"start 'eva' shares out ranks, and {part.name} has none. Choose a low-rank method, e.g. lora."
        )
    return rank


@register("eva")
class EVAStart(Start):
    rho: Annotated[float, Field(ge=1)] = 2.0  # a site gets at most rho times the rank; 1: equal ranks
    rows: PositiveInt = 2048  # training rows that are read at most
    still: Annotated[float, Field(gt=0, le=1)] = 0.99  # |cosine| with the batch before, to stand still
    numbers: PositiveInt | None = (
        None  # instead of rank * sites directions: as many as A and B have numbers for
    )

    needs = (NAME,)

    def most(self, part: Part) -> int:
        """The largest rank of a site."""
        return math.floor(self.rho * rank_option(part))

    def asks(self, part):
        return {NAME: IncrementalPCA(self.most(part))}

    def enough(self, part, statistics):
        if any(NAME not in found for found in statistics.values()):
            return False
        budget = rank_option(part) * len(statistics)
        ranks = allocated({n: f[NAME].shares() for n, f in statistics.items()}, self.most(part), budget)
        stood = torch.cat([statistics[n][NAME].stood[:r] for n, r in ranks.items()])
        return len(stood) == budget and bool((stood >= self.still).all())

    def layouts(self, part, sites, statistics):
        budget = rank_option(part) * len(sites)
        shares = {
            s.name: statistics[s.name][NAME].shares()[: min(s.in_features, s.out_features)] for s in sites
        }
        if self.numbers is None:
            ranks = allocated(shares, self.most(part), budget)
        else:
            costs = {s.name: s.in_features + s.out_features for s in sites}
            ranks = allocated(shares, self.most(part), self.numbers, costs)
        if sum(ranks.values()) < (budget if self.numbers is None else 1):
            raise OptionError(
                f"start 'eva': the inputs vary along {sum(ranks.values())} directions, too few for rank={part.rank} at {len(sites)} sites. "
                "Give more rows (start.rows), or choose a smaller rank."
            )
        return {s.name: {**part.layout(s), "rank": ranks[s.name]} for s in sites if ranks[s.name]}

    def fill(self, site, specs, weight, statistics, rng):
        rank = rank_of(specs, weight, self.name)
        return {"A": statistics[NAME].components[:rank].float(), "B": torch.zeros(specs["B"].shape)}
