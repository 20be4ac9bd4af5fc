"""Rotations in blocks: orthogonal matrices by Cayley's transform, and the butterflies that make many small ones reach everything.

    R = (I + Q)^-1 (I - Q), Q skew: Q[i, j] = q, Q[j, i] = -q for i < j        R is orthogonal, det R = 1, and I at q = 0

A vector is cut into blocks of `size` numbers, each turned by its own R. In factor i of a butterfly a block is two runs of size / 2
that stand 2^i runs apart, so that after k factors a number has met 2^(k-1) blocks. Pure functions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def skew(q: Tensor, size: int) -> Tensor:
    """Skew matrices from the entries above the diagonal, row by row: (..., size (size - 1) / 2) -> (..., size, size)."""
    upper = torch.triu_indices(size, size, 1, device=q.device)
    empty = q.new_zeros(*q.shape[:-1], size * size)
    made = empty.index_copy(-1, upper[0] * size + upper[1], q).unflatten(-1, (size, size))
    return made - made.mT


def cayley(q: Tensor, size: int) -> Tensor:
    """Orthogonal matrices, (..., size, size), made in single precision at least."""
    q = q.float() if q.dtype.itemsize < 4 else q
    one = torch.eye(size, dtype=q.dtype, device=q.device)
    return (
        2 * torch.linalg.inv(one + skew(q, size)) - one
    )  # (I + Q)^-1 (2 I - (I + Q)); its gradient needs no other inverse


def turned(x: Tensor, r: Tensor) -> Tensor:
    """Each block of x by its own matrix, R x_block. x: (..., blocks * size); r: (blocks, size, size), or by row (rows, blocks, size, size)."""
    head, (blocks, size) = r.shape[:-3], r.shape[-3:-1]
    cut = x.reshape(*head, -1, blocks, size).transpose(-3, -2)  # (blocks, n, size)
    return (cut @ r.to(x.dtype).mT).transpose(-3, -2).reshape(x.shape)


def paired(x: Tensor, size: int, factor: int) -> Tensor:
    """x in the order in which factor `factor` of a butterfly cuts it into blocks: runs of size / 2, 2^factor apart, side by side."""
    apart, run = 2**factor, size // 2
    return x.unflatten(-1, (-1, 2, apart, run)).transpose(-3, -2).flatten(-4)


def unpaired(x: Tensor, size: int, factor: int) -> Tensor:
    """The inverse of `paired`."""
    apart, run = 2**factor, size // 2
    return x.unflatten(-1, (-1, apart, 2, run)).transpose(-3, -2).flatten(-4)


def butterfly(x: Tensor, r: Tensor, factors: int, back: bool = False) -> Tensor:
    """x by all factors, the first one first; back: by the inverse of that. r: (..., factors * blocks, size, size)."""
    size = r.shape[-1]
    each = list(enumerate(r.unflatten(-3, (factors, -1)).unbind(-4)))
    for i, blocks in reversed(each) if back else each:
        cut = paired(x, size, i) if i else x
        cut = turned(cut, blocks.mT if back else blocks)
        x = unpaired(cut, size, i) if i else cut
    return x
