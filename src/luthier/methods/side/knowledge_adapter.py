"""Knowledge adapter: a side stack that memorises the facts of a knowledge base beside a frozen language model (Emelin et al. 2022, "Injecting Domain Knowledge in Language Models for Task-Oriented Dialogue Systems", S009).

u_k = h_k + a_{k-1};  a_k = u_k + U_k layers_k(D_k u_k + d_k) + b_k;  out = W [h; a] + c
h_k: what a block that it reads returns, a_0 = 0, h: the last block's, a: the last adapter's. D: (width / reduction, width)
U: (width, width / reduction)  W: (width, 2 width). Layers have the shape of the base's block there, narrowed, and are drawn.
trained: 2 * width * (width // reduction) + width // reduction + 2 * width + 2 * width * width, and the narrow layers
for each tower, where one block is read: so many Ds and Us as blocks, one W.
Step 0 is the base (W = [I, 0]). Not a weight change: it cannot merge. Without it, the base's logits exactly. No gradient enters the
base, so its activations are not kept and its outputs may come from the prefix cache. In an encoder-decoder both halves have one: the
base's decoder reads the base's encoder, the side layers of the decoder what the adapter of the encoder returns (there W = [I/2, I/2]).

Facts to train it on: `luthier verbalise`. What it knows: `luthier instruments knowledge`. Keep it while the model is tuned, alone
or with those of other knowledge bases: `knowledge_fusion`.

Differs: the side layers are the base's kind of block with whole heads and hidden units kept in proportion, under its mask and positions;
W starts at the base, where the paper draws it; W stands before the tower's last norm where the tower has one.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.errors import OptionError
from luthier.host.part import method
from luthier.host.places import Stack
from luthier.host.sites import Structure, Tower
from luthier.host.structure import structure_of
from luthier.starts.narrow import check_reduction, narrow, redraw, sizes_of


class KnowledgeSide(nn.Module):
    """The side stack of one tower. layers: `depth` for each block that it reads, one after the other."""

    def __init__(self, reads: list[int], layers: list[nn.Module], width: int, narrower: int, read: bool, rng):
        super().__init__()
        self.reads, self.depth = reads, len(layers) // len(reads)
        self.layers = nn.ModuleList(layers)

        def drawn(out: int, inside: int) -> nn.ParameterList:
            return nn.ParameterList(
                nn.Parameter(torch.randn(out, inside, generator=rng) * inside**-0.5) for _ in reads
            )

        def nothing(size: int) -> nn.ParameterList:
            return nn.ParameterList(nn.Parameter(torch.zeros(size)) for _ in reads)

        self.down, self.down_bias = drawn(narrower, width), nothing(narrower)
        self.up, self.up_bias = drawn(width, narrower), nothing(width)
        of_base, of_side = (0.5, 0.5) if read else (1.0, 0.0)
        self.join = nn.Parameter(torch.cat([of_base * torch.eye(width), of_side * torch.eye(width)], 1))
        self.join_bias = nn.Parameter(torch.zeros(width))

    def beside(self, block: Any, index: int, h: Tensor, a: Tensor | None) -> Tensor | None:
        """a_k behind block `index`, which returned h; what was given where that one is not read."""
        if index not in self.reads:
            return a
        k = self.reads.index(index)
        u = h if a is None else h + a
        s = F.linear(u, self.down[k].to(h.dtype), self.down_bias[k].to(h.dtype))
        for layer in self.layers[k * self.depth : (k + 1) * self.depth]:
            s = block(s, layer)
        return u + F.linear(s, self.up[k].to(h.dtype), self.up_bias[k].to(h.dtype))

    def joined(self, h: Tensor, a: Tensor) -> Tensor:
        """W [h; a] + c."""
        return F.linear(torch.cat([h, a], -1), self.join.to(h.dtype), self.join_bias.to(h.dtype))


def numbers(reads: str, blocks: int) -> list[int]:
    """The blocks of a tower that are read, in order: "-1", "0, 3, -1". OptionError for what is no block."""
    try:
        asked = [int(word) for word in reads.split(",")]
    except ValueError:
        raise OptionError(
            f"knowledge_adapter: reads={reads!r}: numbers of blocks, from 0 or from -1, as in '3, -1'."
        ) from None
    if odd := [i for i in asked if not -blocks <= i < blocks]:
        raise OptionError(f"knowledge_adapter: reads={reads!r}: there is no block {odd[0]} of {blocks}.")
    return sorted({i % blocks for i in asked})


@method("knowledge_adapter", targets="block", rate=1e-3, identity_start=True)
class KnowledgeAdapter(Stack):
    reads: str = "-1"  # blocks of each tower that it reads, from 0 or, from the end, from -1: "3, -1"
    layers: PositiveInt = 2  # transformer layers behind each
    reduction: PositiveInt = 2  # their width is the base's divided by this

    frozen_blocks = True

    def check(self, sites):
        check_reduction(self.name, self.reduction, sites)
        for tower in {s.tower for s in sites}:
            numbers(self.reads, sum(s.tower == tower for s in sites))

    def build(self, base, sites, rng):
        structure, walked = structure_of(base), {s.tower for s in sites}
        return nn.ModuleDict(
            {t.name: self.side(base, structure, t, walked, rng) for t in structure.towers if t.name in walked}
        )

    def side(
        self, base: Any, structure: Structure, tower: Tower, walked: set[str], rng: Any
    ) -> KnowledgeSide:
        sizes = sizes_of(base, structure, tower, self.reduction, self.name)
        reads = numbers(self.reads, len(tower.blocks))
        layers = [
            narrow(base.get_submodule(path), path, list(structure.sites), sizes).float()
            for path in (tower.blocks[i] for i in reads)
            for _ in range(self.layers)
        ]
        read = any(t.reads == tower.name and t.name in walked for t in structure.towers)
        made = KnowledgeSide(reads, layers, tower.width, len(sizes.width), read, rng)
        redraw(made.layers, base, tower.width / len(sizes.width), rng)
        return made

    def caching(self, network):
        return network.layers

    def run(self, blocks, h, ts, network, ctx):
        a = None
        for i, block in enumerate(blocks):
            with torch.no_grad():
                h = block(h)
            a = network.beside(block, i, h, a)
        return network.joined(h, a)
