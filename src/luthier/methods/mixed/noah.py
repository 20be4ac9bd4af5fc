"""NOAH: adapters, LoRA and deep prompts side by side, of a size for each block (Zhang et al. 2022, "Neural Prompt Search", S327).

h <- h + up(act(down(h))) behind the feed-forward layer; dW = B A at query, key and value; P_l in front of block l, for it alone

Of each kind a block has a size (adapter width, LoRA rank, number of tokens), kept in the layout; size 0 is nothing. As a method by itself
every block has `size` of each; `luthier search --method noah` looks for sizes within a budget: for each kind of module a depth
(the first so many blocks have it, the others none) and a size per block, then trains the winner anew. Smaller sizes are the first
rows or columns of larger ones while the supernet trains. Step 0 is the base without the prompts; they are not a weight change.

Differs: where query, key and value are separate layers each has an A and a B of its own; where they are one it is the paper's. LoRA's
scale is 1 at every rank, so that slices are modules of their own. Sizes tried are `size`, half of it and 1 (the paper's 10, 5, 1); depths
are quarters of the blocks (its 3, 6, 9, 12 of 12). The adapter's activation and the prompts' start are not on the paper's page: GELU, and
normal values of deviation 0.02.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Layout, Method, Spec, method, normal, zeros
from luthier.host.places import ActivationEdit, BlockTokens, WeightEdit
from luthier.host.places.remade import remade
from luthier.methods.adapters.bottleneck import Activation, bottleneck, kaiming
from luthier.selection.space import Gene, Space


@method("sized_adapter", targets="mlp.down", rate=2e-3, identity_start=True)
class SizedAdapter(ActivationEdit):
    """Bottleneck adapters whose width is a site's own: h <- h + up(act(down(h))), or h at width 0 (of NOAH, S327).

    down: (size, out)  down_bias: (size,)  up: (out, size)  up_bias: (out,)    trained: 2 * size * out + size + out per site
    Step 0 is the base (up = 0). Not a weight change: it cannot merge.
    """

    size: PositiveInt = 10  # width of every adapter, where no layout says another
    activation: Activation = "gelu"  # between down and up

    def layout(self, site):
        return {"size": self.size}

    def tensors(self, site, layout):
        k, width = layout["size"], site.out_features
        if not k:
            return {}
        return {
            "down": Spec((k, width), kaiming),
            "down_bias": Spec((k,), zeros),
            "up": Spec((width, k), zeros),
            "up_bias": Spec((width,), zeros),
        }

    def edit(self, h, t, ctx):
        return h + bottleneck(h, t, self.activation) if "up" in t else h


@method(
    "sized_lora",
    targets="*attention.query | *attention.key | *attention.value",
    rate=2e-3,
    identity_start=True,
)
class SizedLoRA(WeightEdit):
    """LoRA whose rank is a site's own, at query, key and value or the layer that is all three: dW = B A, or none at rank 0 (of NOAH, S327).

    A: (size, in)  B: (out, size)    trained: size * (in + out) per site
    Step 0 is the base (B = 0). Merges: dW is added to the weight.
    """

    size: PositiveInt = 10  # rank at every site, where no layout says another

    def sites(self, structure, name=None):
        """A slice of a fused layer stands for the whole layer."""
        found = super().sites(structure, name)
        if name is not None:
            return found
        whole = {s.path: s for s in structure.sites if s.rows is None}
        return list(dict.fromkeys(whole[s.path] for s in found))

    def check(self, sites):
        self.check_rank(self.size, sites)

    def layout(self, site):
        return {"size": self.size}

    def tensors(self, site, layout):
        k = layout["size"]
        return {"A": Spec((k, site.in_features), kaiming), "B": Spec((site.out_features, k), zeros)} if k else {}  # fmt: skip

    def delta(self, weight, t):
        return t.B @ t.A if "A" in t else torch.zeros_like(weight)

    def shortcut(self, x, y, t):
        return y + remade(product, x, t.A, t.B) if "A" in t else y


def product(x, a, b):
    """x (..., in) -> x A^T B^T, (..., out)."""
    return (x @ a.mT) @ b.mT


@method("block_prompt", targets="block", rate=3e-2)
class BlockPrompt(BlockTokens):
    """Deep prompts whose number is a block's own: P_l in front of what enters block l, for it alone (of NOAH, S327).

    P: (size, out)    trained: size * out per site
    As Jia et al. 2022 (VPT, deep), whose prompts are exchanged at every block. Not an identity at step 0; not a weight change: it cannot
    merge. For models whose blocks share neither positions nor a cache: image models, BERT.
    """

    size: PositiveInt = 10  # tokens at every block, where no layout says another

    def layout(self, site):
        return {"size": self.size}

    def tensors(self, site, layout):
        return {"P": Spec((layout["size"], site.out_features), normal(0.02))} if layout["size"] else {}

    def tokens(self, t, ctx):
        return t.get("P")


@method("noah", rate=2e-3)
class NOAH(Method):
    size: PositiveInt = 10  # of every module; the largest that a search tries
    adapters: bool = True  # bottleneck adapters behind feed-forward layers
    lora: bool = True  # low-rank changes of query, key and value
    prompts: bool = True  # tokens in front of every block

    retrains: ClassVar[bool] = True
    """Whether a search trains its winner anew."""

    def parts(self):
        made: tuple[Any, ...] = ()
        made += (SizedAdapter(size=self.size),) if self.adapters else ()
        made += (SizedLoRA(size=self.size),) if self.lora else ()
        made += (BlockPrompt(size=self.size),) if self.prompts else ()
        if not made:
            raise OptionError("noah without adapters, LoRA and prompts is nothing. Leave one of them on.")
        return made

    def space(self, sites):
        """For each kind of module a depth, and a size per block; a child has a kind whole from one parent."""
        sizes = tuple(sorted({self.size, max(1, self.size // 2), 1}, reverse=True))
        parts, genes = self.parts(), []
        for part, here in zip(parts, sites, strict=True):
            blocks = sorted({s.layer for s in here})
            depths = {-(-len(blocks) * quarter // 4) for quarter in (1, 2, 3, 4)}
            genes.append(Gene(f"{part.name}.depth", part.name, tuple(sorted(depths, reverse=True))))
            genes += [Gene(f"{part.name}.{block}", part.name, sizes) for block in blocks]

        def layouts(chosen: Mapping[str, int]) -> dict[str, dict[str, Layout]]:
            found: dict[str, dict[str, Layout]] = {}
            for i, (part, here) in enumerate(zip(parts, sites, strict=True)):
                first = sorted({s.layer for s in here})[: chosen[f"{part.name}.depth"]]
                found[str(i)] = {
                    s.name: {"size": chosen[f"{part.name}.{s.layer}"] if s.layer in first else 0}
                    for s in here
                }
            return found

        return Space(parts, sites, genes, layouts)
