"""What a prompt that is made from the input may read: the instruction's hidden states, never the answer's or padding's."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.errors import OptionError, RunError
from luthier.host.context import Context
from luthier.host.part import Layout, Part
from luthier.host.sites import Site
from luthier.sources.rows import shapes


def prompt_shape(source: str, part: Part, site: Site, layout: Layout) -> tuple[str, int, int]:
    """(tensor, length, width) of the prompt that a part reads at a site. OptionError for parts that read anything else."""
    found = shapes(part, site, layout)
    name, shape = next(iter(found.items()), ("", ()))
    if len(found) != 1 or len(shape) != 2:
        raise OptionError(
            f"source {source} makes prompt tokens from the input, and {part.name} reads {', '.join(found) or 'nothing'} of another shape. "
            "Choose carrier=input or carrier=deep."
        )
    return name, shape[0], shape[1]


def entering(site: Site, ctx: Context | None) -> tuple[Tensor, Tensor] | None:
    """What enters here, without prompts: (rows, tokens, width), and which tokens are the instruction: (rows, tokens) bool.

    None where the tower's sequence is not under way: later tokens, and towers that read it, need only the prompt's length.
    """
    if ctx is None:
        raise RunError("A prompt that is made from the input exists in a forward only.")
    h = ctx.entering.get(site.tower)
    if h is None or ctx.phase != "prefill":
        return None
    seen = ctx.instruction(h.shape[1])
    if seen is None:
        return h, torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
    if ctx.mask is not None and ctx.mask.shape[1] == h.shape[1]:
        seen = seen & ctx.mask.bool()
    return h, seen.expand(len(h), -1)


def masked_softmax(scores: Tensor, seen: Tensor) -> Tensor:
    """Softmax over the tokens that are seen, exactly 0 elsewhere. scores: (rows, ..., tokens); seen: (rows, tokens)."""
    seen = seen.view(len(seen), *[1] * (scores.dim() - 2), -1)
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) * seen
