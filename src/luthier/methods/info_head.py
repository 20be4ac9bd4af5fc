"""InfoPrompt's output part: a linear head behind a Gaussian bottleneck (Wu et al. 2023, "InfoPrompt", S349).

mean, log deviation = two linear layers of h = pool(hidden)    z = output(mean + deviation * noise)    logits = z W^T + b
W: (classes, width)  b: (classes,)    bottleneck: 2 (code, width) + 2 (code,), back: (width, code) + (width,)    map: (width, width) + (width,)
trained: classes * (width + 1) + 2 * code * (width + 1) + width * (code + 1) + width * (width + 1)

In prediction there is no noise. With representation=0 and bottleneck=0 there is no bottleneck, and with head=0 too this is
`linear_head`, number for number. The terms that it weighs, and what they differ in: `luthier.signals.info_prompt`.

Differs: the head's rows are drawn, not the embeddings of label words, which a head on pooled states of any model cannot take;
the code is of the pooled state, which on a masked model need not be that of a mask token.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import method
from luthier.methods.heads import LinearHead, affine, pool
from luthier.signals.info_prompt import NOTE
from luthier.sources.linear import layer

SMALLEST, LARGEST = -2.0, 10.0
"""Of a log deviation, as in the public code."""

Gaussian = tuple[Tensor, Tensor]


@method("info_head", rate=1e-3)
class InfoHead(LinearHead):
    representation: NonNegativeFloat = 0.2  # weight of the information between prompt and code
    head: NonNegativeFloat = 0.1  # weight of the information between prompt and head
    bottleneck: NonNegativeFloat = (
        0.1  # weight of the code's divergence from N(0, 1); 0 with representation=0: no code
    )
    code: PositiveInt = 64  # numbers of the code
    negatives: PositiveInt = 128  # codes without the prompt that one with it is told from
    fade: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the terms' weights that is gone at the end

    @property
    def stochastic(self) -> bool:
        """Whether the head reads a sampled code."""
        return bool(self.representation or self.bottleneck)

    def tensors(self, site, layout):
        made = dict(super().tensors(site, layout))
        if self.stochastic:
            made |= layer("mean", self.code, self.width) | layer("deviation", self.code, self.width)
            made |= layer("back", self.width, self.code)
        if self.representation:
            made |= layer("map", self.width, self.width)
        return made

    def logits(self, hidden, mask, t, ctx):
        x = self.pooled(hidden, mask)
        gaussian = self.gaussian(x, t) if self.stochastic else None
        code = None
        if gaussian is not None:
            code = (
                self.sampled(gaussian, t, 1)[:, 0] if t.training else affine(gaussian[0], t.back_w, t.back_b)
            )
        if t.training:
            prompt, tokens = in_front(ctx)
            read = {"pooled": x, "gaussian": gaussian, "code": code, "prompt": prompt, "tokens": tokens}
            ctx.note(NOTE, (self, t, {**read, "mask": mask}))
        return super().logits(x if code is None else code, None, t, ctx)

    def pooled(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return pool(hidden, mask, self.pooling)

    def gaussian(self, x: Tensor, t) -> Gaussian:
        """Mean and log deviation of each row's code. x: (rows, width) -> twice (rows, code)."""
        return affine(x, t.mean_w, t.mean_b), affine(x, t.deviation_w, t.deviation_b).clamp(SMALLEST, LARGEST)

    def sampled(self, gaussian: Gaussian, t, draws: int) -> Tensor:
        """(rows, draws, width) from twice (rows, code)."""
        mean, log_deviation = (g[:, None] for g in gaussian)
        noise = torch.randn((len(mean), draws, mean.shape[-1]), dtype=mean.dtype, device=mean.device)
        return affine(mean + noise * log_deviation.exp(), t.back_w, t.back_b)

    def context(self, prompt: Tensor, t) -> Tensor:
        """What the prompt says, detached: (rows or 1, width)."""
        return affine(prompt.detach().to(t.map_w.dtype), t.map_w, t.map_b).mean(-2)


def in_front(ctx) -> tuple[Tensor, Tensor]:
    """(rows or 1, length, width) prompt tokens and (rows, tokens, width) input of a forward. OptionError without a prompt."""
    made = next((m for m in ctx.prompts.values() if m.tokens), None)
    if made is None:
        raise OptionError(
            "InfoPrompt's terms are about prompt tokens in front of the input, and this method has none. Choose a soft prompt "
            "(prompt_tuning, dpt, deep_prompt, ...), or another signal."
        )
    prompt = torch.cat([p.expand(1, -1, -1) if p.dim() == 2 else p for p in made.tokens], -2)
    return prompt, made.input
