"""EPT: DePT whose prompt reads the shift and is mapped into several spaces ("Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion", 2024, S348).

[Q; E(x) + S],  S = c A B    A: (max_positions, rank)  B: (rank, width), 0 at the start; c = alpha / sqrt(rank)
fusion   F = P + softmax(P S^T / sqrt(width)) S    P: (length, width)
spaces   Q = sum_k g_k M_k(F),  g = softmax(mean_tokens(F) G^T + b)    M_1(F) = F,  M_k(F) = F + F D_k U_k
D_k: (width, space_rank)  U_k: (space_rank, width), 0 at the start  G: (spaces, width)  b: (1, spaces)
The rank is the largest with which all of this trains no more numbers than a plain prompt of `budget` tokens, unless it is given:
trained: length * width + spaces * (width + 1) + 2 * (spaces - 1) * width * space_rank + ((budget - length) * width - spaces * (width + 1) - 2 * (spaces - 1) * width * space_rank) // (max_positions + width) * (max_positions + width)
Not an identity at step 0: the prompt, as DePT's. Not a weight change: it cannot merge.

Without fusion and with one space it is DePT. Differs: the paper's abstract fixes neither the fusion, the spaces nor the gate; here they are
attention without weights of its own, low-rank maps beside the identity, and one gate for the whole prompt. All but the prompt
train at `shift_rate` times its rate; AdamW at the rates of this row.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from luthier.host.part import Phase, Spec, Start, method, normal, uniform, zeros
from luthier.host.places import ActivationEdit
from luthier.host.sites import Site
from luthier.methods.prompts.embedding_shift import fits, shifted, table
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.signals.optimisers import adamw
from luthier.starts.vocabulary import Vocabulary


def fused(prompt: Tensor, shift: Tensor) -> Tensor:
    """prompt: (..., length, width), shift: (..., positions, width): each token adds what it attends to in the shift."""
    weights = torch.softmax(prompt @ shift.mT / prompt.shape[-1] ** 0.5, -1)
    return prompt + weights @ shift


def gate(prompt: Tensor, G: Tensor, b: Tensor) -> Tensor:
    """(..., 1, spaces): the weights of the spaces, which sum to 1."""
    return torch.softmax(prompt.mean(-2, keepdim=True) @ G.mT + b, -1)


def combined(prompt: Tensor, g: Tensor, D: Tensor, U: Tensor) -> Tensor:
    """sum_k g_k M_k(prompt). g: (..., 1, spaces)  D: (..., spaces - 1, width, space_rank)  U: its transpose's shape."""
    moved = prompt.unsqueeze(-3) @ D @ U
    return prompt + (g.squeeze(-2)[..., 1:, None, None] * moved).sum(-3)


@method("ept", targets="embedding", rate=1e-1)
class EPT(PromptTuning, ActivationEdit):
    length: PositiveInt = 40  # prompt tokens
    budget: Annotated[int, Field(ge=5)] = 100  # tokens of the plain prompt whose numbers may train
    rank: NonNegativeInt = 0  # of the shift; 0: the largest that the budget allows
    alpha: PositiveFloat = 8.0  # the shift is scaled by alpha / sqrt(rank)
    max_positions: Annotated[int, Field(ge=16)] = 256  # the longest input
    fusion: bool = True  # the prompt attends to the shift
    spaces: PositiveInt = 4  # how many, the identity among them
    space_rank: PositiveInt = 4  # rank of the map of each space but the identity
    shift_rate: PositiveFloat = 0.05  # learning rate of all but the prompt, as a share of the prompt's
    start: Start = Vocabulary()  # of the prompt: rows of the vocabulary, or chosen ones

    def sites(self, structure, name=None):
        super().sites(structure, name)  # refuses models in which no token reads another
        return ActivationEdit.sites(self, structure, name)  # and there is no other place than the embedding

    def rank_at(self, site: Site) -> int:
        width, others = site.out_features, self.spaces - 1
        gated = (self.spaces * (width + 1) if others else 0) + 2 * others * width * self.space_rank
        left = (self.budget - self.length) * width - gated
        return self.rank or left // (self.max_positions + width)

    def check(self, sites):
        for s in sites:
            fits(self, s, self.rank_at(s))

    def tensors(self, site, layout):
        rank, width, others = self.rank_at(site), site.out_features, self.spaces - 1
        made = {
            "P": (self.length, width),
            "A": Spec((self.max_positions, rank), uniform(rank**-0.5)),
            "B": Spec((rank, width), zeros),
        }
        if others:
            made["D"] = Spec((others, width, self.space_rank), normal(width**-0.5))
            made["U"] = Spec((others, self.space_rank, width), zeros)
            made["gate"] = Spec((self.spaces, width), normal(width**-0.5))
            made["bias"] = Spec((1, self.spaces), zeros)
        return made

    def install(self, placed, adapted):
        yield from super().install(placed, adapted)
        yield from ActivationEdit.install(self, placed, adapted)

    def tokens(self, t, ctx):
        prompt = fused(t.P, table(self.alpha, t.A, t.B)) if self.fusion else t.P
        return combined(prompt, gate(prompt, t.gate, t.bias), t.D, t.U) if self.spaces > 1 else prompt

    def edit(self, h, t, ctx):
        return shifted(h, table(self.alpha, t.A, t.B), ctx, self)

    def phases(self):
        return (Phase("train", optimiser=self.adamw_at_two_rates),)

    def adamw_at_two_rates(self, named, run):
        """AdamW: the prompt at its own rate or the run's, the rest of this part at `shift_rate` times that."""
        return adamw(named, run, factors={r"\.parts\.0\..*\.(A|B|D|U|gate|bias)$": self.shift_rate})
