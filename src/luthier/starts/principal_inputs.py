"""Principal directions of what a layer receives, batch by batch: centred incremental PCA (Ross et al. 2008, "Incremental Learning for
Robust Visual Tracking"), as EVA (S144) needs it.

With k directions V (k, in), their sums of squares s and the mean of the n tokens so far, the next m tokens X with mean b give
the top k right-singular vectors and squared singular values of [sqrt(s) V;  X - b;  sqrt(n m / (n + m)) (b - mean)].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Directions(NamedTuple):
    """What is known so far. All in double."""

    components: Tensor
    """(k, in), orthonormal rows, the strongest first."""
    squares: Tensor
    """(k,) sums of squared deviations along each."""
    mean: Tensor
    """(in,)."""
    number: int
    """Tokens."""
    total: Tensor
    """Sum of squared deviations along all directions."""
    stood: Tensor
    """(k,) |cosine| of each direction with what it was a batch before; 0 where it is new."""

    def shares(self) -> Tensor:
        """(k,) share of the inputs' variance along each direction."""
        return self.squares / self.total.clamp(min=torch.finfo(torch.float64).tiny)


class IncrementalPCA:
    """(state or None, (tokens, in)) -> Directions, at most `most` of them."""

    answers_only = True

    def __init__(self, most: int):
        self.most = most

    def __call__(self, state: Directions | None, x: Tensor) -> Directions:
        x = x.double()
        m, here = len(x), x.mean(0)
        rows = [x - here]
        total = rows[0].square().sum()
        if state is None:
            count, mean = m, here
        else:
            n, count = state.number, state.number + m
            step = here - state.mean
            mean = state.mean + step * (m / count)
            total = total + state.total + step.square().sum() * (n * m / count)
            rows = [
                state.squares.sqrt()[:, None] * state.components,
                *rows,
                step[None] * (n * m / count) ** 0.5,
            ]
        components, squares = _leading(torch.cat(rows), self.most)
        stood = torch.zeros_like(squares)
        if state is not None:
            both = min(len(stood), len(state.squares))
            stood[:both] = (components[:both] * state.components[:both]).sum(1).abs()
        return Directions(components, squares, mean, count, total, stood)


def _leading(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The strongest right-singular vectors of (n, in), with squared singular values; those that are nothing but rounding left out."""
    if len(rows) < rows.shape[1]:
        _, s, vectors = torch.linalg.svd(rows, full_matrices=False)
        squares = s.square()
    else:
        values, turned = torch.linalg.eigh(rows.T @ rows)
        squares, vectors = values.flip(0).clamp(min=0), turned.T.flip(0)
    kept = min(most, int((squares > 1e-12 * squares[:1]).sum()))
    return vectors[:kept], squares[:kept]
