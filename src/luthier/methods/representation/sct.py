"""SCT: a map of the channels that a task uses, in place (Zhao et al. 2023, "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels", S026).

x_S <- x_S + s (W x_S + b)    S: one channel in `reduction`, those with the largest class-wise norms on the task's training rows
W: (channels, channels)  b: (channels,)    trained: channels * channels + channels per site
x is the residual stream right after attention has been added. Not an identity at step 0: W begins with normal values, b with zeros. Also acts
on the skip path, which no weight holds: it cannot merge. Needs training rows for S (outside a fit: the first channels).

Differs: at most start.rows training rows decide, classes in turn; targets that are no classes count as one. s is fixed at 0.4, as
the paper's on CIFAR, unless it is set. `sct_outputs` does the same to what layers return, and merges.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from luthier.host.functional import rowwise
from luthier.host.options import options
from luthier.host.part import Part, Spec, Start, method, zeros
from luthier.host.places import ActivationEdit, WeightEdit
from luthier.selection.chosen import checked
from luthier.starts.salient import Salient


def mapped(x: Tensor, t) -> Tensor:
    """W x_S + b for the layout's channels of x, (..., width) -> (..., channels); W and b may carry a leading row dimension."""
    picked = x.index_select(-1, channels(t, x))
    return picked @ t.W.mT + rowwise(t.b, picked)


def channels(t, like: Tensor) -> Tensor:
    return torch.tensor(t.layout["channels"], device=like.device)


@options
class ChannelMap(Part):
    """What both places share: which channels, and the map's tensors."""

    reduction: PositiveInt = 8  # one channel in so many is mapped
    scale: PositiveFloat = 0.4  # s
    start: Start = Salient()  # which channels, and how W begins

    stream: ClassVar[bool] = False
    """Whether channels are those of the residual stream behind the layer, rather than of what the layer returns."""

    def channels_of(self, site) -> int:
        """How many channels of a site are mapped."""
        return max(1, site.out_features // self.reduction)

    def layout(self, site):
        return {"channels": list(range(self.channels_of(site)))}

    def tensors(self, site, layout):
        what = f"{self.name}: channels of {site.name}"
        own = len(checked(layout["channels"], site.out_features, what))
        return {"W": (own, own), "b": Spec((own,), zeros)}


@method("sct", targets="attention.output", rate=3e-2)
class SCT(ChannelMap, ActivationEdit):
    reads = "block"
    stream = True

    def edit(self, h, t, ctx):
        change = self.scale * mapped(t.x + h, t)
        return h.index_add(-1, channels(t, h), change.to(h.dtype))


@method("sct_outputs", targets="mlp.down", rate=3e-2)
class SCTOutputs(ChannelMap, WeightEdit):
    """SCT on what a layer returns, before its residual: the feed-forward layer's output, or with other targets query and value.

    Merging folds it into the layer: W2 + s P^T W P W2, P picking S, and its bias likewise, which is made where there is none.
    """

    def delta(self, weight, t):
        own = channels(t, weight)
        return torch.zeros_like(weight).index_copy(0, own, self.scale * t.W @ weight[own])

    def delta_bias(self, weight, bias, t):
        own = channels(t, weight)
        inside = t.b if bias is None else t.W @ bias[own] + t.b
        return weight.new_zeros(len(weight)).index_copy(0, own, self.scale * inside)

    def shortcut(self, x, y, t):
        return y.index_add(-1, channels(t, y), (self.scale * mapped(y, t)).to(y.dtype))
