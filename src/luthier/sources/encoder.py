"""A prompt made by a light encoder, position by position ("Cross-Prompt Encoder for Low-Performing Languages", 2025, S328).

P = [D; g(E)],  g(e) = W3 relu(W2 relu(W1 e + b1) + b2) + b3    E: (encoded, inputs)  W1: (hidden, inputs)  W3: (row, hidden)
The last `share` of the tokens come from the encoder, the first ones (D) are trained directly: 0 is a plain prompt, 1 the encoder
alone (XPE), between them a dual prompt. One encoder per tensor, shared by its tokens; row: the numbers of one token.
trained: tensors * (length * row + hidden * (row + 1) + hidden * (hidden + 1) + row * (hidden + 1)) per site (share=1, inputs=0)
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch.nn.functional import dropout, relu

from luthier.errors import OptionError
from luthier.host.part import Source, Spec, normal, register
from luthier.sources.linear import applied, layer
from luthier.sources.rows import from_rows, shapes, size, to_rows


@register("encoder")
class Encoder(Source):
    share: Annotated[float, Field(ge=0, le=1)] = 1.0  # share of the tokens that the encoder makes, rounded
    hidden: PositiveInt = 256  # width of the two hidden layers
    inputs: NonNegativeInt = 0  # numbers in one input vector of the encoder; 0: as many as in a token
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # behind each hidden layer, while training
    initial: Literal["normal", "start"] = (
        "normal"  # the encoder's inputs: standard normal, or what the start gives (inputs=0)
    )

    def encoded(self, length: int) -> int:
        """How many of `length` tokens the encoder makes."""
        return int(self.share * length + 0.5)

    def specs(self, part, site, layout, wanted):
        if self.initial == "start" and self.inputs:
            raise OptionError(
                "source encoder: initial=start takes whole tokens as inputs. Leave inputs=0, or choose initial=normal."
            )
        made = {}
        for name, spec in wanted.items():
            length, row = size(part, name, spec.shape)
            n, inputs = self.encoded(length), self.inputs or row
            if n < length:
                made[name] = Spec((length - n, row))
            if n:
                made[f"{name}_E"] = Spec((n, inputs), normal(1.0))
                made |= layer(f"{name}_1", self.hidden, inputs) | layer(f"{name}_2", self.hidden, self.hidden)
                made |= layer(f"{name}_3", row, self.hidden)
        return made

    def begin(self, part, site, draw):
        out = {}
        for name, value in draw().items():
            rows = to_rows(value)
            n = self.encoded(len(rows))
            out[name] = rows[: len(rows) - n]
            if self.initial == "start":
                out[f"{name}_E"] = rows[len(rows) - n :]
        return out

    def make(self, part, site, t, ctx, made=None):
        out = {}
        for name, shape in shapes(part, site, t.layout).items():
            rows = [t[name]] if name in t else []
            if f"{name}_E" in t:
                h = t[f"{name}_E"]
                for i in (1, 2):
                    h = dropout(relu(applied(h, t, f"{name}_{i}")), self.dropout, t.training)
                rows.append(applied(h, t, f"{name}_3"))
            out[name] = from_rows(torch.cat(rows), shape)
        return out
