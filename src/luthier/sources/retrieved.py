"""A prompt of which some tokens are fetched from a memory by what the instruction says (Bari et al. 2022, "SPT", S056).

q = mean of the instruction's hidden states [Wq]; i_1 .. i_k: the rows of M with the largest q.M_i, of equals the first
[M_i1; ..; M_ik; P]    M: (entries, width)  P: (length - k, width)  Wq: (width, width), weighted only, starts as the identity
weighted: each fetched row times k softmax(q.M_i / sqrt(width)) over those fetched
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import Source, Spec, register
from luthier.sources.instruction import entering, prompt_shape


def largest(scores: Tensor, k: int) -> Tensor:
    """(..., entries) -> (..., k): where the largest scores stand, from the largest on, of equals the first."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :k]


@register("retrieved")
class Retrieved(Source):
    """trained: entries * width + (length - k) * width + width * width (the last if weighted; k=0: length * width alone)"""

    entries: PositiveInt = 64  # rows of the memory
    k: NonNegativeInt = 3  # how many are fetched; 0: none, an ordinary prompt
    weighted: bool = True  # fetched rows count by their scores, which trains the query; False: as they are, and none trains

    by_row = True

    def specs(self, part, site, layout, wanted):
        _, length, width = prompt_shape(self.name, part, site, layout)
        if self.k > min(length, self.entries):
            raise OptionError(
                f"source retrieved: k={self.k} is above {min(length, self.entries)}, the fewer of the prompt's {length} tokens and the "
                f"memory's {self.entries} rows."
            )
        made = {"P": Spec((length - self.k, width))} if length > self.k else {}
        if self.k:
            made["M"] = Spec((self.entries, width))
            if self.weighted:
                made["Wq"] = Spec((width, width), lambda shape, rng: torch.eye(*shape))
        return made

    def begin(self, part, site, draw):
        first = draw()["P"]
        out = {"P": first[self.k :]} if len(first) > self.k else {}
        if self.k:
            rows = [first[: self.k]]
            while sum(map(len, rows)) < self.entries:
                rows.append(draw()["P"])
            out["M"] = torch.cat(rows)[: self.entries]
        return out

    def fetch(self, scores: Tensor) -> Tensor:
        """(rows, entries) -> (rows, k): which entries each row gets."""
        return largest(scores, self.k)

    def make(self, part, site, t, ctx, made=None):
        name, length, width = prompt_shape(self.name, part, site, t.layout)
        if not self.k:
            return {name: t["P"]}
        read = entering(site, ctx)
        if read is None:
            return {name: t["M"].new_zeros(length, width)}
        h, seen = read
        memory = t["M"].to(h.dtype)
        weight = seen[:, :, None].to(h.dtype)
        query = (h * weight).sum(1) / weight.sum(1).clamp(min=1)
        if self.weighted:
            query = query @ t["Wq"].to(h.dtype)
        scores = query @ memory.mT  # (rows, entries)
        at = self.fetch(scores)
        tokens = memory[at]
        if self.weighted:
            share = (scores.gather(1, at) / width**0.5).softmax(-1)
            tokens = tokens * (self.k * share)[..., None]
        if length > self.k:
            tokens = torch.cat([tokens, t["P"].to(h.dtype).expand(len(h), -1, -1)], 1)
        return {name: tokens}
