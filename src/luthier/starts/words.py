"""Starts for prompts from words: the labels' names (Lester et al. 2021), or a text.

At the input a token is the word's embedding; a deep prompt starts with the same rows before every block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import Spec, Start, register


def rows_of(
    name: str, ids: Sequence[int], specs: Mapping[str, Spec], weight: Tensor | None
) -> dict[str, Tensor]:
    """The vocabulary's rows `ids`, over and over, for every tensor (length, width)."""
    out = {}
    for tensor, s in specs.items():
        if weight is None or weight.dim() != 2 or len(s.shape) != 2 or weight.shape[1] != s.shape[1]:
            raise OptionError(
                f"start {name!r} takes rows of a vocabulary, and there is none where {tensor} of shape {tuple(s.shape)} stands. "
                "Choose start=normal there, or a prompt at the input (carrier=input)."
            )
        which = torch.tensor([ids[i % len(ids)] for i in range(s.shape[0])], device=weight.device)
        out[tensor] = weight[which].float().cpu()
    return out


@register("label_words")
class LabelWords(Start):
    needs = ("label_ids", "vocabulary")

    def fill(self, site, specs, weight, statistics, rng):
        ids = [i for word in statistics["label_ids"] for i in word]
        return rows_of(self.name, ids, specs, statistics["vocabulary"])


@register("text")
class Text(Start):
    text: str = ""  # as many tokens as the prompt is long

    needs = ("tokenize", "vocabulary")

    def fill(self, site, specs, weight, statistics, rng):
        ids = statistics["tokenize"](self.text)
        length = next(iter(specs.values())).shape[0]
        if len(ids) != length:
            raise OptionError(
                f"start 'text': {self.text[:60]!r} has {len(ids)} tokens and the prompt {length}. Set length={max(1, len(ids))}, or give another text."
            )
        return rows_of(self.name, ids, specs, statistics["vocabulary"])
