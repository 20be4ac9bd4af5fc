"""Tensors of a smaller layout as the first entries of larger ones, which every layout shares (Chen et al. 2021, "AutoFormer").

t_k = T_k[:n_1, :n_2, ...]    T_k: as the part's own layout wants it; (n_1, n_2, ...): as the layout of the moment does
Trained are the T_k: one network holds all smaller ones (S319, S327). A tensor that the layout of the moment lacks is not read.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from luthier.host.options import register
from luthier.host.part import Source, SpecLike, spec


def first_entries(held: Mapping[str, Tensor], wanted: Mapping[str, SpecLike]) -> dict[str, Tensor]:
    """What is wanted, cut out of what is held under the same names: the first entries along every dimension."""
    return {k: held[k][tuple(slice(0, n) for n in spec(s).shape)] for k, s in wanted.items()}


@register("slices")
class Slices(Source):
    """A layout smaller than the part's own reads the first entries of its tensors."""

    def specs(self, part, site, layout, wanted):
        return part.tensors(site, part.layout(site))

    def make(self, part, site, t, ctx, made=None):
        return first_entries(t, part.tensors(site, t.layout))
