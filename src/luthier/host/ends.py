"""How far each token of a tower's sequence stands from the ends of the input, whatever stands around it.

The input is what the model was given: without padding, without prompts in front of it, and without the answer (in training what the
labels mark, in generation what was written since), also where a cache holds the tokens before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.host.context import Context, pieces

FAR = 2**31
"""What a token that is no input counts as its distance."""


class Ends(NamedTuple):
    """Distances in tokens of the input, (rows or 1, tokens); `FAR` for what is no input."""

    before: Tensor
    """How many stand before it."""
    behind: Tensor
    """How many stand behind it."""
    packed: bool
    """Whether a row holds several sequences, each with ends of its own."""


def ends(ctx: Context, length: int, device: torch.device) -> Ends | None:
    """Of the tower under way, whose hidden states now have `length` tokens; None where none of them is input."""
    key = f"ends:{ctx.tower}:{length}"
    if key not in ctx.made:
        ctx.made[key] = _ends(ctx, length, device)
    return ctx.made[key]  # type: ignore[no-any-return]


def _ends(ctx: Context, length: int, device: torch.device) -> Ends | None:
    prompts, embedded = ctx.prompts.get(ctx.tower), ctx.entering.get(ctx.tower)
    inside = prompts is not None and ctx.phase == "prefill"
    if inside and embedded is not None:
        inside = length != embedded.shape[1]  # an encoder is trimmed behind its last block
    tokens = length - (prompts.added if inside and prompts is not None else 0)
    marked = ctx.given.get("instruction") if ctx.embeds else None
    first = ctx.seen
    if ctx.phase == "decode" and (marked is None or not first):
        return None  # what is written; a state that does not say how far it went lies behind the input
    if marked is None or ctx.phase != "decode":
        marked, first = ctx.instruction(tokens) if ctx.embeds else None, 0
    marked = torch.ones(1, tokens) if marked is None else marked
    marked = F.pad(marked.to(device, torch.long), (0, max(0, first + tokens - marked.shape[1])))
    packed = pieces(ctx.positions) if ctx.mask is None and ctx.causal and not first else None
    if packed is None:
        upto = marked.cumsum(1)
        before, behind = upto - marked, upto[:, -1:] - upto
    else:
        here = (packed[:, :, None] == packed[:, None]) * marked[:, None]
        before, behind = here.tril(-1).sum(-1), here.triu(1).sum(-1)
    now = slice(first, first + tokens)
    distances = [torch.where(marked.bool(), x, FAR)[:, now] for x in (before, behind)]
    if inside and prompts is not None:
        rows = len(prompts.visible[0])
        distances = [
            prompts.put_behind(F.pad(x.expand(rows, -1), (prompts.added, 0), value=FAR)) for x in distances
        ]
    return Ends(distances[0], distances[1], packed is not None)
