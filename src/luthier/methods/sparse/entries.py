"""Single entries of parameters, trained in their place: all else keeps its bits, under weight decay too.

value: (marked,) for each parameter of a site, with its positions in the flattened parameter    trained: marked per site
A parameter whose every entry is marked needs no positions. By itself the method marks entries at random (Xu & Zhang 2024, "Random
Masking Finds Winning Tickets for Parameter Efficient Fine-tuning"), `count` of every parameter; plans mark others
(`sensitivity_tuning`). Step 0 is the base; merging writes the values.

Differs: the paper's masks are a share of each matrix of the attention; here a number of each parameter at `targets`.
"""

from __future__ import annotations

import math

import torch
from pydantic import PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Spec, Start, method, register
from luthier.methods.sparse.parameters import Full

PLACES = "_at"
"""What follows a parameter's name in the name of its positions."""


@register("drawn_entries")
class DrawnEntries(Start):
    """Positions at random, each once, and the base's own values there."""

    def fill(self, site, specs, weight, statistics, rng):
        out = {}
        for name in (n for n in specs if not n.endswith(PLACES)):
            value = statistics["parameters"][name].float().flatten()
            if name + PLACES in specs:
                at = torch.randperm(len(value), generator=rng)[: specs[name].shape[0]].sort().values
                out[name + PLACES], value = at, value[at.to(value.device)]
            out[name] = value
        return out


@method("sparse_entries", targets="*attention.* | mlp.* | norm*", rate=1e-3, decay=0.0, identity_start=True)
class SparseEntries(Full):
    count: PositiveInt = 64  # entries of every parameter, or all that it has
    start: Start = DrawnEntries()

    def layout(self, site):
        return self.marking({n: min(self.count, math.prod(shape)) for n, shape in site.parameters})

    @staticmethod
    def marking(counts):
        """The layout with so many marked entries of each parameter."""
        return {"marked": sum(counts.values()), "of": counts}

    def tensors(self, site, layout):
        every, of = {n: math.prod(shape) for n, shape in site.parameters}, layout["of"]
        if any(type(k) is not int or not 0 < k <= every.get(n, 0) for n, k in of.items()) or layout[
            "marked"
        ] != sum(of.values()):
            raise OptionError(
                f"{self.name}: the marked entries of {site.name} are not of its parameters: the layout was made for another model, or is "
                "damaged."
            )
        found = {}
        for n, k in of.items():
            found[n] = Spec((k,))
            if k < every[n]:
                found[n + PLACES] = Spec((k,), None, False, dtype=torch.int64, bounds=(0, every[n] - 1))
        return found

    def values(self, parameters, t):
        out = {}
        for n in t.layout["of"]:
            if n in parameters:
                p, value = parameters[n], t[n].to(parameters[n].dtype)
                at = t.get(n + PLACES)
                out[n] = (value if at is None else p.reshape(-1).scatter(0, at, value)).view(p.shape)
        return out
