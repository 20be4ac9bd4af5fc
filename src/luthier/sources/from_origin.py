"""A prompt or prefix as its origin and what training adds to it ("Task Prompt Vectors", 2024, S351).

P = P_0 + T    P_0: the start, kept and never trained  T: of the same shape, zero at the start
trained: tensors * length * row per site
"""

from __future__ import annotations

from luthier.host.part import Source, Spec, register, zeros
from luthier.sources.rows import shapes, size


@register("from_origin")
class FromOrigin(Source):
    def specs(self, part, site, layout, wanted):
        made = {}
        for name, spec in wanted.items():
            size(part, name, spec.shape)
            made[name] = spec._replace(trained=False)
            made[f"{name}_T"] = Spec(spec.shape, zeros)
        return made

    def make(self, part, site, t, ctx, made=None):
        return {name: t[name] + t[f"{name}_T"] for name in shapes(part, site, t.layout)}
