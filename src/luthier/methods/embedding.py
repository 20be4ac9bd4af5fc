"""Embeddings: a row's hidden states as one vector of norm 1, for tasks that find texts by texts (S049).

embedding: v = pool(h) / ||pool(h)||    no tensors    trained: 0
Pooling is the model's: the mean over tokens of an encoder (and of an encoder-decoder's encoder), the last token of a decoder.
"""

from __future__ import annotations

from typing import Literal

from torch.nn import functional as F

from luthier.host.part import method
from luthier.host.places import OutputHead
from luthier.methods.heads import pool


@method("embedding")
class Embedding(OutputHead):
    pooling: Literal["mean", "cls", "last"] = "mean"  # how the hidden states of a row become one vector

    def logits(self, hidden, mask, t, ctx):
        """hidden: (rows, tokens, width) -> (rows, width)."""
        return F.normalize(pool(hidden, mask, self.pooling), dim=-1)
