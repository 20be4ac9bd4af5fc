"""Bottleneck adapters and their unified view (He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", S202).

h <- h + s * up(act(down(z)))    down: (width, d_in)  up: (d_out, width)  biases: (width,), (d_out,)
Sequential (Houlsby et al. 2019; Pfeiffer et al. 2021): z is the sub-layer's output h; parallel: z is the sub-layer's input x.
trained: 2 * width * out + width + out per site
Step 0 is the base (up = 0). Not a weight change: it cannot merge.

Differs: no layer norm inside the adapter, as in S202; `mix_and_match` takes the prefix without its MLP unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from luthier.host.part import Method, Spec, method, zeros
from luthier.host.places import ActivationEdit
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2

Activation = Literal["relu", "gelu", "silu", "tanh", "none"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "none": lambda x: x,
}  # fmt: skip


def kaiming(shape, rng):
    """Uniform with bound 1 / sqrt(fan-in), as S202 starts the down projection."""
    return (torch.rand(shape, generator=rng) * 2 - 1) / shape[-1] ** 0.5


def bottleneck(z: Tensor, t, activation: str) -> Tensor:
    """up(act(down z)); tensors may carry a leading row dimension."""
    if t.down.dim() == 2:
        return F.linear(ACTIVATIONS[activation](F.linear(z, t.down, t.down_bias)), t.up, t.up_bias)
    flat = z.reshape(len(z), -1, z.shape[-1])
    inner = ACTIVATIONS[activation](flat @ t.down.mT + t.down_bias[:, None])
    return (inner @ t.up.mT + t.up_bias[:, None]).reshape(*z.shape[:-1], -1)


@method("adapter", targets="mlp.down", rate=2e-3, identity_start=True)
class Adapter(ActivationEdit):
    """Bottleneck adapter: reads and adds to what the feed-forward sub-layer returns.

    Houlsby's pair is `targets="*attention.output | mlp.down"`. Of the unified view: S202.
    """

    width: PositiveInt = 32  # bottleneck width
    activation: Activation = "relu"  # between down and up
    scale: PositiveFloat = 1.0  # s

    def tensors(self, site, layout):
        inside, outside = self.sizes(site)
        return {
            "down": Spec((self.width, inside), kaiming),
            "down_bias": Spec((self.width,), zeros),
            "up": Spec((outside, self.width), zeros),
            "up_bias": Spec((outside,), zeros),
        }

    def sizes(self, site):
        return site.out_features, site.out_features

    def edit(self, h, t, ctx):
        return h + self.scale * bottleneck(h, t, self.activation)


@method("parallel_adapter", targets="mlp.down", rate=2e-3, identity_start=True)
class ParallelAdapter(Adapter):
    """Scaled parallel adapter (S202): reads the feed-forward sub-layer's input, adds to its output."""

    reads = "mlp.up"
    scale: PositiveFloat = 4.0  # s, fixed at 4 in S202

    def sizes(self, site):
        return site.out_features, site.out_features  # a sub-layer reads what it adds to

    def edit(self, h, t, ctx):
        return h + self.scale * bottleneck(t.x, t, self.activation)


@method("mix_and_match", rate=2e-3)
class MixAndMatch(Method):
    """Mix-and-match adapter (S202): a short prefix in every attention, a scaled parallel adapter on every feed-forward layer."""

    length: PositiveInt = 30  # prefix length
    width: PositiveInt = 64  # bottleneck width (512 in S202, on models of width 1024)
    scale: PositiveFloat = 4.0  # s of the parallel adapter
    reparameterise: bool = True  # make the prefix by an MLP from embeddings

    def parts(self):
        return (
            PTuningV2(length=self.length, reparameterise=self.reparameterise),
            ParallelAdapter(width=self.width, scale=self.scale),
        )
