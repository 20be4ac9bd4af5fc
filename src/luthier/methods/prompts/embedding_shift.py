"""Embedding shift: a low-rank update of the embedded input, position by position (the second part of DePT, Shi & Lipani 2024, S207).

E'(x)_i = E(x)_i + c (A B)_i,  c = alpha / sqrt(r)    A: (max_positions, r)  B: (r, width)
r = rank + tokens * width // (max_positions + width): a rank, or the numbers of so many prompt tokens
trained: (rank + tokens * width // (max_positions + width)) * (max_positions + width)
Step 0 is the base (B = 0; A is uniform in +-1/sqrt(r)). Not a weight change: it cannot merge.

i counts the tokens of a row that are no padding, generated ones too; of an encoder-decoder the encoder's input is shifted.
Differs: the public code pads every input to max_positions and shifts the padding too; here the shift follows the positions, so padding
changes nothing, and a longer input is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from luthier.errors import OptionError, RunError
from luthier.host.part import Spec, Start, method, uniform, zero
from luthier.host.places import ActivationEdit
from luthier.host.sites import Site

if TYPE_CHECKING:
    from luthier.host.context import Context


@method("embedding_shift", targets="embedding", rate=5e-3, identity_start=True)
class EmbeddingShift(ActivationEdit):
    rank: NonNegativeInt = 8  # rank of the update
    tokens: NonNegativeInt = 0  # what is added to the rank: as much as the numbers of so many tokens pay for
    alpha: PositiveFloat = 8.0  # the update is scaled by alpha / sqrt(rank)
    max_positions: Annotated[int, Field(ge=16)] = 256  # the longest input
    start: Start = zero("B")  # B before training

    def rank_at(self, site: Site) -> int:
        return self.rank + self.tokens * site.out_features // (self.max_positions + site.out_features)

    def check(self, sites):
        for s in sites:
            fits(self, s, self.rank_at(s))

    def tensors(self, site, layout):
        rank = self.rank_at(site)
        return {
            "A": Spec((self.max_positions, rank), uniform(rank**-0.5)),
            "B": (rank, site.out_features),
        }

    def edit(self, h, t, ctx):
        return shifted(h, table(self.alpha, t.A, t.B), ctx, self)


def fits(part: Any, site: Site, rank: int) -> None:
    """OptionError where a shift of this rank has no sense at a site."""
    if site.role != "embedding":
        raise OptionError(
            f"{part.name} shifts embedded input, and {site.name} is {site.role!r}. Leave targets=embedding."
        )
    if not 0 < rank <= min(part.max_positions, site.out_features):
        raise OptionError(
            f"{part.name}: the rank is {rank} for {part.max_positions} positions and the width {site.out_features} of {site.name}: "
            "it must be from 1 to the smaller of the two. Set rank, or another length, budget or max_positions."
        )


def table(alpha: float, A: Tensor, B: Tensor) -> Tensor:
    """c A B: (..., positions, width)."""
    return alpha / A.shape[-1] ** 0.5 * A @ B


def shifted(h: Tensor, shift: Tensor, ctx: Context, part: Any) -> Tensor:
    """h: (rows, tokens, width) plus the shift of each token's position."""
    found = ctx.positions
    if found is None:
        raise RunError(
            f"{part.name} counts positions, and this forward goes on from a state without saying where. Give it the attention_mask of the whole sequence."
        )
    longest = max(ctx.seen + h.shape[1], 0 if ctx.mask is None else ctx.mask.shape[1])
    if longest > part.max_positions:  # with padding perhaps: only then is it worth asking the device
        last = int(found.max()) + 1
        if last > part.max_positions:
            raise RunError(
                f"{part.name} has {part.max_positions} positions, and a row here has {last} tokens. Give shorter inputs (max_length), or train with max_positions={last} or more."
            )
    return h + looked_up(shift, found)


def looked_up(table: Tensor, positions: Tensor) -> Tensor:
    """table: (positions, width), or one for each row; positions: (1 or rows, tokens) -> (1 or rows, tokens, width)."""
    if table.dim() == 2:
        return table[positions]
    return table[torch.arange(len(table), device=table.device)[:, None], positions]
