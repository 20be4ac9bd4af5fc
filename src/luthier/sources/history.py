"""Prompts made from a row's history: its items' vectors become a fixed number of tokens (Hebert et al. 2024, "PERSOMA", S329).

X: (items, item_width), each item's vector, in order; padding is masked. `nobody`: (item_width,) stands for a history without items.
mlp          P_g = mean of f(X_i) over the g-th of `length` equal stretches of the history, f = W2 gelu(W1 x + b1) + b2
transformer  the same means of Z W2 + b2, Z: encoder layers over X W1 + b1
perceiver    Z W2 + b2, Z: (length, inner), latents L that read the items X W1 + b1 by cross-attention, `layers` times
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from luthier.errors import OptionError
from luthier.host.part import Source, Spec, normal, ones, register, zeros
from luthier.sources.instruction import prompt_shape


@register("history")
class History(Source):
    """Token prompts from `history` (rows, items, item_width) and `history_mask` (rows, items) of the batch; without: nobody's.

    mlp: trained: (item_width + 1) * inner + (inner + 1) * width + item_width
    """

    adapter: Literal["mlp", "transformer", "perceiver"] = "mlp"  # what maps and resamples the items
    # A card may come from anywhere, and what it names must never be a reason to read a folder or to fetch something.
    encoder: Annotated[str, Field(pattern=r"^builtin:\w+$")] = (
        "builtin:minilm"  # makes a vector of each item, frozen
    )
    item_width: PositiveInt = 384  # numbers in an item's vector
    items: PositiveInt = 50  # items that are read at most
    sampler: Literal["recent", "random", "diverse"] = "recent"  # which, where a history has more
    inner: PositiveInt = 128  # width inside the adapter
    layers: PositiveInt = 1  # of the transformer or perceiver
    heads: Annotated[int, Field(ge=1, le=64)] = 4  # of their attention
    positions: bool = False  # whether items know their places (transformer and perceiver)

    by_row = True

    def reader(self, seed=0):
        """What turns lists of texts into what a batch holds."""
        from luthier.models.histories import HistoryReader

        return HistoryReader(self.encoder, self.item_width, self.items, self.sampler, seed)

    def specs(self, part, site, layout, wanted):
        _, length, width = prompt_shape(self.name, part, site, layout)
        if self.inner % self.heads:
            raise OptionError(f"source history: inner={self.inner} is not divided by heads={self.heads}.")
        n, d = self.inner, self.item_width
        made = {
            "nobody": Spec((d,), normal(d**-0.5)),
            "W1": Spec((n, d), normal(1.0)),  # items have norm 1
            "b1": Spec((n,), zeros),
            "W2": Spec((width, n), normal(0.5 * n**-0.5)),
            "b2": Spec((width,), zeros),
        }
        if self.adapter == "mlp":
            return made
        if self.adapter == "perceiver":
            made["latents"] = Spec((length, n), normal(1.0))
        if self.positions:
            made["places"] = Spec((self.items, n), normal(0.02))
        for i in range(self.layers):
            made[f"norm_{i}"] = Spec((3, n), ones)
            for key in ("Q", "K", "V", "O"):
                made[f"{key}_{i}"] = Spec((n, n), normal(n**-0.5))
            made[f"up_{i}"] = Spec((2 * n, n), normal(n**-0.5))
            made[f"down_{i}"] = Spec((n, 2 * n), normal((2 * n) ** -0.5))
        return made

    def begin(self, part, site, draw):
        return {}

    def make(self, part, site, t, ctx, made=None):
        name, length, _ = prompt_shape(self.name, part, site, t.layout)
        x, seen = items_of(ctx, t["nobody"])
        z = F.linear(x, t["W1"], t["b1"])
        if self.adapter == "mlp":
            z = stretches(F.linear(F.gelu(z), t["W2"], t["b2"]), seen, length)
            return {name: z}
        if self.positions:
            z = z + t["places"][: z.shape[1]]
        read = z if self.adapter == "perceiver" else None
        if read is not None:
            z = t["latents"].expand(len(z), -1, -1)
        for i in range(self.layers):
            a, b, c = t[f"norm_{i}"]
            items = rms(z if read is None else read, b)
            z = z + self.attended(rms(z, a), items, seen, t, i)
            z = z + F.linear(F.gelu(F.linear(rms(z, c), t[f"up_{i}"])), t[f"down_{i}"])
        z = F.linear(z, t["W2"], t["b2"])
        return {name: z if self.adapter == "perceiver" else stretches(z, seen, length)}

    def attended(self, query: Tensor, items: Tensor, seen: Tensor, t, i: int) -> Tensor:
        """Attention of query (rows, n, inner) over items (rows, m, inner), of which seen (rows, m) bool are there."""
        q, k, v = (
            F.linear(h, t[f"{key}_{i}"]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for key, h in (("Q", query), ("K", items), ("V", items))
        )
        out = F.scaled_dot_product_attention(q, k, v, seen[:, None, None, :])
        return F.linear(out.transpose(1, 2).flatten(2), t[f"O_{i}"])


def items_of(ctx, nobody: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, items, item_width) and (rows, items) bool; a row without items has one, `nobody`."""
    x = None if ctx is None else ctx.given.get("history")
    if x is None:
        return nobody[None, None], torch.ones(1, 1, dtype=torch.bool, device=nobody.device)
    x, seen = x.to(nobody), ctx.need("history_mask").bool()
    empty = ~seen.any(1)
    x = torch.where(
        empty[:, None, None] & (torch.arange(x.shape[1], device=x.device) == 0)[None, :, None], nobody, x
    )
    first = torch.zeros_like(seen)
    first[:, 0] = empty
    return x, seen | first


def stretches(z: Tensor, seen: Tensor, length: int) -> Tensor:
    """Means over `length` equal stretches of the items that are there: (rows, items, width) -> (rows, length, width).

    Stretch g of n items runs from floor(g n / length) to ceil((g + 1) n / length), so none is empty, and two may share an item.
    """
    place = torch.where(seen, seen.long().cumsum(1) - 1, -1)[:, None]  # (rows, 1, items)
    n = seen.sum(1)[:, None, None]
    g = torch.arange(length, device=z.device)[None, :, None]
    inside = (place >= g * n // length) & (place < -(-(g + 1) * n // length)) & seen[:, None]
    weights = inside.to(z.dtype)
    return (weights / weights.sum(-1, keepdim=True)) @ z


def rms(x: Tensor, gain: Tensor) -> Tensor:
    """x over its root mean square, times a gain."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain
