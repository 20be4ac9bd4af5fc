"""Contrast within a batch: a query is to find its own document among those of the batch's other rows (S049; van den Oord et al. 2018).

L_i = -log exp(q_i . d_i / T) / (exp(q_i . d_i / T) + sum_j exp(q_i . d_j / T))    q, d: unit vectors, T: the temperature

The sum is over the batch's rows j whose document is another text than d_i. `reverse` weighs the other direction, a document that is to
find its query: (1 - reverse) L + reverse L'; 0.5 is the mean of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.errors import OptionError
from luthier.signals.info_nce import info_nce
from luthier.signals.objectives import Objective


@dataclass(frozen=True)
class Contrastive(Objective):
    """temperature: 0.05, the factor 20 of UniXcoder's code search. reverse: share of the direction from document to query."""

    temperature: float = 0.05
    reverse: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise OptionError(f"contrastive temperature={self.temperature:g}: it must be above 0.")
        if not 0 <= self.reverse <= 1:
            raise OptionError(f"contrastive reverse={self.reverse:g}: it is a share, from 0 to 1.")

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(rows,). logits: (2 rows, width), a row's query and document one behind the other; labels: (rows,), equal for equal documents."""
        queries, documents = logits.unflatten(0, (-1, 2)).unbind(1)
        similar = queries @ documents.mT / self.temperature
        others = labels[:, None] != labels
        total = torch.zeros(len(labels), device=logits.device)
        for share, scores in ((1 - self.reverse, similar), (self.reverse, similar.mT)):
            if share:
                total = total + share * info_nce(scores.diagonal(), scores, others)
        return total
