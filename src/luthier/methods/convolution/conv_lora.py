"""ConvLoRA and convDoRA: a convolution to a few channels, then one of 1 x 1 (S210, "LoRA-based methods on Unet for transfer learning in Subarachnoid Hematoma Segmentation").

y + (alpha / rank) B * (A * x)    A: (rank, in, *window), with the layer's stride, padding, dilation and groups    B: (out, rank), 1 x 1
As a kernel, dK = (alpha / rank) B A: (out, in, *window), which merging adds. Step 0 is the base (B = 0); `in` is per group.
Targets are roles or module names with * (`encoder.*`, `*bottleneck*`): of what they match, the convolutions are changed.

Differs: nothing known. conv_lora runs as its two convolutions, so that half precision doesn't round the update away; conv_dora
needs |K + dK| and is folded into the kernel. The change is lora_c's of the same rank without `spread`.
"""

from __future__ import annotations

from math import prod

import torch
from pydantic import NonNegativeFloat, PositiveInt

from luthier.host.part import Spec, method, normal, zeros
from luthier.host.places import ConvolutionEdit
from luthier.methods.convolution.magnitude import Normed


@method("conv_lora", targets="conv", rate=2e-3, identity_start=True)
class ConvLoRA(ConvolutionEdit):
    """ConvLoRA: a low-rank change of a convolution, as one to `rank` channels and one of 1 x 1 from them (S210).

    trained: rank * (in * window + out) per site
    """

    rank: PositiveInt = 8  # channels between the two convolutions
    alpha: NonNegativeFloat = 16.0  # the update is scaled by alpha / rank

    def tensors(self, site, layout):
        shape = dict(site.parameters)["weight"][1:]
        return {
            "A": Spec((self.rank, *shape), normal(prod(shape) ** -0.5)),
            "B": Spec((site.out_features, self.rank), zeros),
        }

    def delta(self, weight, t):
        inner = t.A.flatten(1 - weight.dim())
        return self.alpha / self.rank * (t.B @ inner).unflatten(-1, weight.shape[1:])

    def shortcut(self, x, y, t, convolve):
        outputs, inputs = -y.dim(), 1 - y.dim()  # the dimensions of A
        groups = x.shape[1] // t.A.shape[inputs]
        inner = convolve(
            x, torch.cat([t.A] * groups, outputs)
        )  # each group's rank channels, one group after the other
        inner = inner.unflatten(1, (groups, self.rank)).flatten(3)
        made = t.B.unflatten(-2, (groups, -1)) @ inner
        return y + self.alpha / self.rank * made.reshape(y.shape)


@method("conv_dora", targets="conv", rate=2e-3, identity_start=True)
class ConvDoRA(Normed, ConvLoRA):
    """convDoRA: conv_lora with a trained length of each output channel, K' = m (K + dK) / |K + dK| (S210).

    trained: rank * (in * window + out) + out per site
    """
