"""Histories as vectors: which items of a row's list of texts are read, and what a sentence encoder makes of them.

sampled: at most `items` texts of each row, in their order    (rows, items, width) of them, and (rows, items) bool: which are there
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from luthier.errors import ModelError

Sampler = Literal["recent", "random", "diverse"]
CHUNK = 64
"""Texts that the encoder reads at once."""


@dataclass(frozen=True)
class HistoryReader:
    """encoder: a model that pools texts, frozen. sampler: which items stay where there are more."""

    encoder: str
    width: int
    items: int
    sampler: Sampler
    seed: int = 0

    def read(self, histories: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """Each text is encoded once. Raises ModelError where the encoder's vectors are not `width` wide."""
        if self.sampler == "diverse":
            vectors = embedded(self.encoder, [t for own in histories for t in own])
            kept = [diverse([vectors[t] for t in own], self.items) for own in histories]
        else:
            kept = [self._kept(own) for own in histories]
            vectors = embedded(
                self.encoder, [own[i] for own, at in zip(histories, kept, strict=True) for i in at]
            )
        found = torch.zeros(len(histories), self.items, self.width)
        there = torch.zeros(len(histories), self.items, dtype=torch.bool)
        for row, (own, at) in enumerate(zip(histories, kept, strict=True)):
            for place, i in enumerate(at):
                vector = vectors[own[i]]
                if len(vector) != self.width:
                    raise ModelError(
                        f"{self.encoder} makes vectors of {len(vector)} numbers, not {self.width}: set source.item_width={len(vector)}."
                    )
                found[row, place], there[row, place] = vector, True
        return found, there

    def _kept(self, own: Sequence[str]) -> list[int]:
        if len(own) <= self.items or self.sampler == "recent":
            return list(range(max(0, len(own) - self.items), len(own)))
        # the same history is always sampled alike, in whichever row it stands
        key = zlib.crc32("\n".join(own).encode())
        drawn = np.random.default_rng([self.seed, key]).choice(len(own), self.items, replace=False)
        return sorted(drawn.tolist())


def diverse(vectors: Sequence[Tensor], items: int) -> list[int]:
    """Places of the texts that are farthest from one another: the last one, then each time the one farthest from all chosen."""
    if len(vectors) <= items:
        return list(range(len(vectors)))
    every = torch.stack(list(vectors))
    chosen = [len(vectors) - 1]
    nearest = (every - every[-1]).norm(dim=1)
    while len(chosen) < items:
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (every - every[chosen[-1]]).norm(dim=1))
    return sorted(chosen)


@cache
def _encoder(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A frozen model and what it has encoded, kept for the process."""
    from luthier.models.load import load

    model = load(name, device="cpu", dtype="float32")
    if model.preprocess is None or model.pooling not in ("mean", "cls", "last"):
        raise ModelError(
            f"{name} pools no texts: choose a sentence encoder, as builtin:minilm, for the history."
        )
    return model, {}


@torch.no_grad()
def embedded(name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """{text: its vector of norm 1}, (width,), by the encoder's own pooling."""
    model, known = _encoder(name)
    new = [text for text in dict.fromkeys(texts) if text not in known]
    rows = model.preprocess.encode(new) if new else []
    order = sorted(range(len(new)), key=lambda i: len(rows[i]["input_ids"]))
    for begin in range(0, len(order), CHUNK):
        at = order[begin : begin + CHUNK]
        batch = model.preprocess.collate([rows[i] for i in at])
        hidden, mask = model.base(**batch).last_hidden_state, batch["attention_mask"][..., None]
        if model.pooling == "mean":
            made = (hidden * mask).sum(1) / mask.sum(1)
        else:
            last = (
                mask[..., 0].sum(1) - 1 if model.pooling == "last" else torch.zeros(len(at), dtype=torch.long)
            )
            made = hidden[torch.arange(len(at)), last]
        known.update({new[i]: v for i, v in zip(at, made / made.norm(dim=1, keepdim=True), strict=True)})
    return known
