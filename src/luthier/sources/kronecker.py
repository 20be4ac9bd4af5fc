"""Sums of Kronecker products in row-major (torch) order, and a matrix taken apart into them (Van Loan and Pitsianis 1993).

    (A kron B)[i1 b1 + i2, j1 b2 + j2] = A[i1, j1] B[i2, j2]        A: (a1, a2)  B: (b1, b2)
    (A kron B) x = flat(A X B^T)                                    x: (a2 b2,) viewed row by row as X: (a2, b2)

In column-stacking order it would be vec(B X A^T). Pure functions; factors are (..., terms, a1, a2) and (..., terms, b1, b2), summed
over terms, with at most one dimension in front: the rows of a batch.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """How the sides of a matrix (a1 b1, a2 b2) are divided between two factors."""

    a1: int
    a2: int
    b1: int
    b2: int

    @property
    def terms(self) -> int:
        """Terms that make every matrix."""
        return min(self.a1 * self.a2, self.b1 * self.b2)


def divisor(number: int, most: int = 0) -> int:
    """The largest divisor of a number that is at most `most`; 0: at most its square root."""
    return max(k for k in range(1, min(most or isqrt(number), number) + 1) if number % k == 0)


def split(outputs: int, inputs: int, a1: int = 0, a2: int = 0) -> Split:
    """(outputs, inputs) divided so that the left factor is at most (a1, a2); 0: at most the square root of that side."""
    a1, a2 = divisor(outputs, a1), divisor(inputs, a2)
    return Split(a1, a2, outputs // a1, inputs // a2)


def kron(left: Tensor, right: Tensor) -> Tensor:
    """sum_k left_k kron right_k: (..., a1 b1, a2 b2)."""
    (a1, a2), (b1, b2) = left.shape[-2:], right.shape[-2:]
    made = left.flatten(-2).mT @ right.flatten(-2)
    made = made.unflatten(-1, (b1, b2)).unflatten(-3, (a1, a2))
    return made.transpose(-3, -2).flatten(-4, -3).flatten(-2)


def product(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x (sum_k left_k kron right_k)^T without the product being made. x: (..., a2 b2), with factors by row (rows, tokens, a2 b2)."""
    (a1, a2), (b1, b2) = left.shape[-2:], right.shape[-2:]
    head = left.shape[:-3]
    if a2 * b1 * (b2 + a1) <= a1 * b2 * (a2 + b1):
        y = _right_first(x.reshape(*head, -1, a2, b2), left, right)
    else:
        y = _right_first(x.reshape(*head, -1, a2, b2).mT, right, left).mT
    return y.reshape(*x.shape[:-1], a1 * b1)


def _right_first(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum_k left_k X right_k^T, two products of matrices. x: (..., n, a2, b2) -> (..., n, a1, b1)."""
    n, a2, (terms, b1) = x.shape[-3], x.shape[-2], right.shape[-3:-1]
    z = x.flatten(-3, -2) @ right.flatten(-3, -2).mT  # (n a2, terms b1)
    z = z.unflatten(-1, (terms, b1)).unflatten(-3, (n, a2)).movedim(-1, -3)  # (n, b1, a2, terms)
    y = z.flatten(-2).flatten(-3, -2) @ left.movedim(-3, -1).movedim(-3, -1).flatten(-3, -2)  # (n b1, a1)
    return y.unflatten(-2, (n, b1)).mT


def rearranged(weight: Tensor, s: Split) -> Tensor:
    """R(W): every block (b1, b2) a row, so that a Kronecker product is a matrix of rank one: (a1 a2, b1 b2)."""
    blocks = weight.reshape(s.a1, s.b1, s.a2, s.b2).transpose(1, 2)
    return blocks.reshape(s.a1 * s.a2, s.b1 * s.b2)


def components(weight: Tensor, s: Split) -> tuple[Tensor, Tensor, Tensor]:
    """(U, sigma, V) with W = sum_k sigma_k U_k kron V_k, the largest first: (terms, a1, a2), (terms,), (terms, b1, b2), in double."""
    u, sigma, v = torch.linalg.svd(rearranged(weight, s).double(), full_matrices=False)
    return u.T.reshape(-1, s.a1, s.a2), sigma, v.reshape(-1, s.b1, s.b2)


def spectrum(weight: Tensor, s: Split) -> Tensor:
    """sigma of `components`."""
    return torch.linalg.svdvals(rearranged(weight, s).double())
