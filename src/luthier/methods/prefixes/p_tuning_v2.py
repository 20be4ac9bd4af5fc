"""P-Tuning v2 / prefix tuning: keys and values of its own in every layer (Liu et al. 2022, "P-Tuning v2", S099; Li & Liang 2021).

K_l, V_l: (heads, length, head_dim) in front of each layer's keys and values, never masked.
trained: 2 * length * heads * head_dim per site
Not an identity at step 0; not a weight change: it cannot merge.

reparameterise: prefix = tanh(E W1 + b1) W2 + b2 with E: (length, d), W1: (d, inner), W2: (inner, 2 * layers * kv width).

Differs: content positions start at 0, and a bias by distance leaves the prefix out (the public code lets the library shift BERT's by
the length: positions="after" does so; "front" gives T5's bias to the prefix too); without reparameterisation keys and values begin normal (`start`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn.functional import dropout

from luthier.errors import OptionError
from luthier.host.part import Free, Source, Spec, Start, method, normal, register, zeros
from luthier.host.places import AttentionEdit
from luthier.starts.normal import Normal


@register("mlp_prefix")
class MLPPrefix(Source):
    """All layers' keys and values from one embedding of the prefix, through Linear-Tanh-Linear; d: heads * head_dim.

    trained: length * d + (d + 1) * inner + (inner + 1) * 2 * sites * d
    """

    inner: PositiveInt = 128  # width of the hidden layer

    def specs(self, part, site, layout, wanted):
        return {}

    def begin(self, part, site, draw):
        return {}

    def shared(self, part, wanted):
        sizes = [s.shape[0] * s.shape[2] for specs in wanted.values() for s in (specs["K"],)]
        length = next(iter(wanted.values()))["K"].shape[1]
        width, total = max(sizes), 2 * sum(sizes)
        return {
            "E": Spec((length, width), normal(1.0)),
            "W1": Spec((width, self.inner), normal(width**-0.5)),
            "b1": Spec((self.inner,), zeros),
            "W2": Spec((self.inner, total), normal(0.02)),
            "b2": Spec((total,), zeros),
        }

    def prepare(self, part, t, wanted, ctx):
        made = torch.tanh(t.E @ t.W1 + t.b1) @ t.W2 + t.b2
        out, start = {}, 0
        for site, specs in wanted.items():
            heads, length, dim = specs["K"].shape
            for key in ("K", "V"):
                piece = made[:, start : start + heads * dim]
                out[site, key] = piece.view(length, heads, dim).transpose(0, 1)
                start += heads * dim
        return out

    def make(self, part, site, t, ctx, made=None):
        return {"K": made[site.name, "K"], "V": made[site.name, "V"]}


@method("p_tuning_v2", targets="attention", rate=3e-2)
class PTuningV2(AttentionEdit):
    length: NonNegativeInt = 20  # prefix tokens per layer
    start: Start = Normal()  # keys and values before training
    prefix_dropout: NonNegativeFloat = 0.0  # dropout on the prefix while training
    reparameterise: bool = False  # make all layers' prefixes by one MLP (Li & Liang 2021)
    positions: Literal["own", "after", "front"] = (
        "own"  # as in peft: the input's positions in a table "after" the prefix; the prefix in "front" for a bias by distance (T5)
    )

    def __post_init__(self):
        if self.reparameterise and type(self.source) is Free:
            object.__setattr__(self, "source", MLPPrefix())

    def plain(self):
        return replace(self, source=Free(), reparameterise=False)

    def tensors(self, site, layout):
        return dict.fromkeys(("K", "V"), (site.heads, self.length, site.head_dim))

    def shift(self) -> int:
        return self.length if self.positions == "after" else 0

    def in_front(self) -> bool:
        return self.positions == "front"

    def check(self, sites) -> None:
        if self.shift() and 0 not in {s.layer for s in sites}:
            raise OptionError(
                f"{self.name}: positions='after' changes the input of the first block, which is not among the targets. Add it, or leave positions='own'."
            )

    def keys_values(self, t, ctx) -> tuple[Tensor, Tensor]:
        p = self.prefix_dropout
        return dropout(t.K, p, t.training), dropout(t.V, p, t.training)
