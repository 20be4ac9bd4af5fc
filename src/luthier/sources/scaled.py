"""A prompt times a trained scale ("Scaled Prompt-Tuning for Few-Shot Natural Language Generation", 2023, S298).

P' = s * P    P: (length, row)  s: (row,), one for each hidden dimension, or (length, 1), one for each token; s = 1 at the start
trained: tensors * (length + 1) * row per site
"""

from __future__ import annotations

from typing import Literal

from luthier.host.part import Source, Spec, ones, register
from luthier.sources.rows import from_rows, shapes, size, to_rows


@register("scaled")
class Scaled(Source):
    over: Literal["dimension", "token"] = "dimension"  # what has a scale of its own
    trained: bool = True  # whether the scale trains; off: it stays 1, a plain prompt

    def specs(self, part, site, layout, wanted):
        made = {}
        for name, spec in wanted.items():
            length, row = size(part, name, spec.shape)
            made[name] = spec
            shape = (row,) if self.over == "dimension" else (length, 1)
            made[f"{name}_scale"] = Spec(shape, ones, trained=self.trained)
        return made

    def make(self, part, site, t, ctx, made=None):
        return {
            name: from_rows(t[f"{name}_scale"] * to_rows(t[name]), shape)
            for name, shape in shapes(part, site, t.layout).items()
        }
