"""A prompt through a shallow net with a skip (Razdaibiedina et al. 2023, "Residual Prompt Tuning", S299).

P' = P + phi(P),  phi(P) = LayerNorm(ReLU(P D^T + d) U^T + u)    P: (length, row)  D: (bottleneck, row)  U: (row, bottleneck)
One net per tensor, shared by its tokens; row: the numbers of one token.
trained: tensors * (length * row + 2 * bottleneck * row + bottleneck + 3 * row) per site

With LayerNorm's gain and bias at 0 this is the plain prompt. A gain of 1 makes phi(P) of unit variance from step 0, which is
large beside the embeddings of most models; so unless `gain` says otherwise, phi starts as large as the prompt itself.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import layer_norm, relu

from luthier.host.part import Source, Spec, register, zeros
from luthier.sources.linear import applied, layer
from luthier.sources.rows import from_rows, shapes, size, to_rows


@register("residual")
class Residual(Source):
    bottleneck: PositiveInt = 800  # width of the hidden layer
    norm: bool = True  # LayerNorm behind the net; off: two numbers a column less
    gain: NonNegativeFloat | None = (
        None  # first gain of the LayerNorm; none: the standard deviation of what the start gives
    )
    skip: bool = True  # add the prompt to what the net makes of it; off: only what the net makes

    def specs(self, part, site, layout, wanted):
        made = {}
        for name, spec in wanted.items():
            length, row = size(part, name, spec.shape)
            made[name] = Spec((length, row))
            made |= layer(f"{name}_down", self.bottleneck, row) | layer(f"{name}_up", row, self.bottleneck)
            if self.norm:
                made[f"{name}_gain"] = Spec((row,))
                made[f"{name}_bias"] = Spec((row,), zeros)
        return made

    def begin(self, part, site, draw):
        out = {}
        for name, value in draw().items():
            out[name] = to_rows(value)
            if self.norm:
                first = float(value.float().std()) if self.gain is None else self.gain
                out[f"{name}_gain"] = torch.full((out[name].shape[1],), first)
        return out

    def make(self, part, site, t, ctx, made=None):
        return {
            name: from_rows(self.rows(t, name), shape) for name, shape in shapes(part, site, t.layout).items()
        }

    def rows(self, t, name) -> Tensor:
        """(length, row): the prompt that the rows t[name] become."""
        new = applied(relu(applied(t[name], t, f"{name}_down")), t, f"{name}_up")
        if self.norm:
            new = layer_norm(new, new.shape[-1:], t[f"{name}_gain"], t[f"{name}_bias"])
        return t[name] + new if self.skip else new
