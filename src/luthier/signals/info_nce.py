"""InfoNCE: a bound of mutual information from telling one true pair from K false ones (van den Oord et al. 2018; used by S349 and S372).

L = -log exp(s+) / (exp(s+) + sum_k exp(s-_k))    s+: (...)  s-: (..., K)    I >= E[log(K + 1) - L], which never exceeds log(K + 1)

With the critic s(x, y) = log p(y | x) / p(y) and negatives from p(y) the bound is tight as K grows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def info_nce(positive: Tensor, negatives: Tensor, present: Tensor | None = None) -> Tensor:
    """L of every pair. positive: (...); negatives: (..., K); present: (..., K) bool, which negatives there are; None: all -> (...)."""
    if present is not None:
        negatives = negatives.masked_fill(~present.bool(), -torch.inf)
    return torch.logsumexp(torch.cat([positive[..., None], negatives], -1), -1) - positive


def information(loss: Tensor, negatives: int) -> Tensor:
    """The bound log(K + 1) - L, in nats, from L against K negatives."""
    return math.log(negatives + 1) - loss
