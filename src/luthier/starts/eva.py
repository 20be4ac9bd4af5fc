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


def allocated(shares: Mapping[str, Tensor], most: int, budget: int) -> dict[str, int]:
    """Ranks by site: the `budget` directions with the largest shares, at most `most` at one site; of equals the first site's."""
    offered = [(-float(v), i, name) for i, (name, own) in enumerate(shares.items()) for v in own[:most]]
    ranks = dict.fromkeys(shares, 0)
    for _, _, name in sorted(offered)[:budget]:
        ranks[name] += 1
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
        ranks = allocated(shares, self.most(part), budget)
        if sum(ranks.values()) < budget:
            raise OptionError(
                f"start 'eva': the inputs vary along {sum(ranks.values())} directions, too few for rank={part.rank} at {len(sites)} sites. "
                "Give more rows (start.rows), or choose a smaller rank."
            )
        return {s.name: {**part.layout(s), "rank": ranks[s.name]} for s in sites if ranks[s.name]}

    def fill(self, site, specs, weight, statistics, rng):
        rank = rank_of(specs, weight, self.name)
        return {"A": statistics[NAME].components[:rank].float(), "B": torch.zeros(specs["B"].shape)}
