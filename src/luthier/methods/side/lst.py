"""LST: a slim transformer beside the frozen blocks reads their outputs (Sung et al. 2022, "LST: Ladder Side-Tuning", S200).

s_0 = W_0 h_0;  s_i = layer_i(mu_i W_i h_i + (1 - mu_i) s_{i-1}),  mu_i = sigmoid(alpha_i / 0.1);  out = up(s_L)
W_i: (width / reduction, width)  alpha: (blocks,)  up: (width, width / reduction)
trained: (blocks + 2) * width * (width // reduction) + blocks, and the narrow layers
No gradient enters the backbone, so its activations are not kept and its outputs may come from the prefix cache.
Layers start as the backbone's own blocks, structurally pruned by magnitude (whole heads, largest hidden units).
Not an identity at step 0; not a weight change: it cannot merge. Encoder-decoders get a ladder for each half: the
backbone's decoder reads the backbone's encoder, the side decoder the side encoder's output.

Differs: scores by magnitude, not Fisher; no side layer is dropped. `initial="random"` draws the layers and projections
instead, as the paper's ablation does.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from luthier.host.part import method
from luthier.host.places import Stack
from luthier.starts.narrow import check_reduction, narrow, redraw, sizes_of


class Ladder(nn.Module):
    """The side network of one tower."""

    def __init__(self, layers: list[nn.Module], width: int, keep: Tensor, rng: torch.Generator):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        pick = torch.zeros(len(keep), width)
        pick[torch.arange(len(keep)), keep] = 1.0  # the pruned basis, from which the layers were cut
        self.down = nn.ParameterList(nn.Parameter(pick.clone()) for _ in range(len(layers) + 1))
        self.gate = nn.Parameter(torch.zeros(len(layers)))
        self.up = nn.Parameter(torch.randn(width, len(keep), generator=rng) * len(keep) ** -0.5)


@method("lst", targets="block", rate=3e-3)
class LST(Stack):
    reduction: PositiveInt = 4  # the side network's width is the backbone's divided by this
    initial: Literal["pruned", "random"] = "pruned"  # side layers cut from the backbone's, or drawn

    frozen_blocks = True

    def check(self, sites):
        check_reduction(self.name, self.reduction, sites)

    def caching(self, network):
        return network.layers

    def build(self, base, sites, rng):
        from luthier.host.structure import structure_of

        structure = structure_of(base)
        return nn.ModuleDict({t.name: self.ladder(base, structure, t, rng) for t in structure.towers})

    def ladder(self, base: Any, structure, tower, rng) -> Ladder:
        sizes = sizes_of(base, structure, tower, self.reduction, self.name)
        count = len(sizes.width)
        layers = [
            narrow(base.get_submodule(path), path, list(structure.sites), sizes).float()
            for path in tower.blocks
        ]
        made = Ladder(layers, tower.width, sizes.width, rng)
        if self.initial == "random":
            redraw(made.layers, base, tower.width / count, rng)
            for p in made.down:
                p.data = torch.randn(p.shape, generator=rng) * tower.width**-0.5
        return made

    def run(self, blocks, h, ts, network, ctx):
        def to(p):
            return p.to(h.dtype)

        s = h @ to(network.down[0]).mT
        for i, block in enumerate(blocks):
            with torch.no_grad():
                h = block(h)
            mu = torch.sigmoid(to(network.gate[i]) / 0.1)
            s = mu * (h @ to(network.down[i + 1]).mT) + (1 - mu) * s
            ctx.note("side", s)
            s = block(s, network.layers[i])
        return s @ to(network.up).mT
