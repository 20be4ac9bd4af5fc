"""A prompt made from the embedded input by one layer of self-attention (Sinha et al. 2025, "ID-SPAM", S358).

A = softmax(E Wq^T (E Wk^T)^T / sqrt(width)) E Wv^T    E: (tokens, width), frozen embeddings; Wq, Wk, Wv: (width, width)
P = reshape(Wu relu(Wd mean(A)))    Wd: (bottleneck, width)  Wu: (length * width, bottleneck); the mean is over the instruction
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor, relu

from luthier.host.context import Context
from luthier.host.part import Source, Spec, normal, register
from luthier.host.sites import Site
from luthier.sources.instruction import entering, masked_softmax, prompt_shape


@register("self_attention")
class SelfAttention(Source):
    """trained: 3 * width * width + bottleneck * width + length * width * bottleneck per site"""

    bottleneck: PositiveInt = 32  # width between the two layers that follow the attention
    attention: bool = True  # False: the tokens are pooled as they are, without the attention layer

    by_row = True

    def specs(self, part, site, layout, wanted):
        _, length, width = prompt_shape(self.name, part, site, layout)
        inside = Spec((width, width), normal(width**-0.5))
        return {
            **({"Wq": inside, "Wk": inside, "Wv": inside} if self.attention else {}),
            "Wd": Spec((self.bottleneck, width), normal(width**-0.5)),
            "Wu": Spec((length * width, self.bottleneck), normal(self.bottleneck**-0.5)),
        }

    def begin(self, part, site, draw):
        return {}

    def read(self, site: Site, ctx: Context | None) -> tuple[Tensor, Tensor] | None:
        """The tokens that the prompt is made from, and which of them count."""
        return entering(site, ctx)

    def make(self, part, site, t, ctx, made=None):
        name, length, width = prompt_shape(self.name, part, site, t.layout)
        read = self.read(site, ctx)
        if read is None:
            return {name: t["Wu"].new_zeros(length, width)}
        h, seen = read
        w = {k: v.to(h.dtype) for k, v in t.items()}
        if self.attention:
            scores = (h @ w["Wq"].mT) @ (h @ w["Wk"].mT).mT / width**0.5
            h = masked_softmax(scores, seen) @ (h @ w["Wv"].mT)
        weight = seen[:, :, None].to(h.dtype)
        pooled = (h * weight).sum(1) / weight.sum(1).clamp(min=1)
        return {name: (relu(pooled @ w["Wd"].mT) @ w["Wu"].mT).unflatten(-1, (length, width))}
