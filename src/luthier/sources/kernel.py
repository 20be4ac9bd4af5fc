"""Attention over a prefix through feature maps, where its length has gone into a sum.

    sum_j exp(q.k_j) v_j ~ phi(q) Z        Z = phi(K)^T V: (heads, features, head_dim)
    sum_j exp(q.k_j)     ~ phi(q) k        k = sum_j phi(k_j): (heads, features)

Pure functions; q and k come with the square root of attention's scaling in them.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import combinations_with_replacement
from math import comb, factorial, prod

import torch
from torch import Tensor
from torch.nn.functional import elu

LARGEST = 4096
"""Features that a map may have: Z has so many rows."""


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1, positive; (..., dim) -> (..., dim)."""
    return elu(x) + 1


def taylor_features(x: Tensor, degree: int) -> Tensor:
    """phi(x).phi(y) = sum_{i <= degree} (x.y)^i / i!; (..., dim) -> (..., comb(dim + degree, degree)).

    One feature for each monomial, x^a / sqrt(a!); the first is the constant 1.
    """
    out = [torch.ones_like(x[..., :1])]
    for index, root in _monomials(x.shape[-1], degree):
        which = torch.tensor(index, device=x.device)
        out.append(x[..., which].prod(-1) / torch.tensor(root, dtype=x.dtype, device=x.device))
    return torch.cat(out, -1)


@cache
def _monomials(dim: int, degree: int) -> tuple[tuple[list[list[int]], list[float]], ...]:
    """For each degree from 1: the variables of every monomial, and sqrt(a!)."""
    made = []
    for i in range(1, degree + 1):
        index = [list(c) for c in combinations_with_replacement(range(dim), i)]
        made.append((index, [prod(map(factorial, Counter(c).values())) ** 0.5 for c in index]))
    return tuple(made)


def count(dim: int, degree: int = 0) -> int:
    """How many features; degree 0: those of elu."""
    return comb(dim + degree, degree) if degree else dim


def features(x: Tensor, number: int) -> Tensor:
    """The map that has so many features: `dim` is elu's, comb(dim + p, p) the Taylor map's of degree p."""
    dim = x.shape[-1]
    if number == dim:
        return elu_features(x)
    return taylor_features(x, next(p for p in range(1, number + 1) if count(dim, p) == number))


def of_prefix(keys: Tensor, values: Tensor, scaling: float, number: int) -> tuple[Tensor, Tensor]:
    """(Z, k) of a prefix's keys and values, (heads, length, head_dim) each, at attention with this scaling."""
    made = features(keys * scaling**0.5, number)
    return made.mT @ values, made.sum(-2)


def joined(out: Tensor, log_mass: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    """(exp(log_mass) out + top) / (exp(log_mass) + bottom): attention's output with that of a prefix.

    out, top: (..., dim); log_mass, bottom: (...), bottom not negative. The largest exponent is taken out of all four terms.
    """
    most = log_mass.detach().clamp(min=0)
    own, other = (log_mass - most).exp()[..., None], (-most).exp()[..., None]
    below = own + other * bottom[..., None]
    below = torch.where(below == 0, torch.ones_like(below), below)  # a query that sees no key, and no prefix
    return out + other * (top - bottom[..., None] * out) / below  # exactly out where the prefix is nothing
