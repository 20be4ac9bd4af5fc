"""Changes of convolution kernels (out, in, *window) from few numbers. Pure functions; factors may carry rows of a batch in front."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

WINDOW = "cde"
"""Names of the factors of a kernel's window, one for each of its dimensions."""


def outer(a: Tensor, b: Tensor, window: Sequence[Tensor]) -> Tensor:
    """sum_r a_r o b_r o c_r o ...: (..., out, in, *window). a: (..., rank, out)  b: (..., rank, in)  c, d, e: (..., rank, length)."""
    sides = WINDOW[: len(window)]
    factors = ",".join(f"...r{side}" for side in ("o", "i", *sides))
    return torch.einsum(f"{factors}->...oi{sides}", a, b, *window)


def sides(shape: Sequence[int], spread: bool) -> tuple[int, int]:
    """Sides of the matrix that a kernel of this shape is viewed as: (out, in * window), or spread (out * first half of the window,
    in * second half), for two dimensions (out * height, in * width)."""
    out, inputs, *window = shape
    half = len(window) // 2 if spread else 0
    return out * prod(window[:half]), inputs * prod(window[half:])


def kernel(matrix: Tensor, shape: Sequence[int], spread: bool) -> Tensor:
    """The matrix of `sides` back as a kernel: (..., out, in, *window)."""
    out, inputs, *window = shape
    half = len(window) // 2 if spread else 0
    made = matrix.reshape(*matrix.shape[:-2], out, *window[:half], inputs, *window[half:])
    return made.movedim(half - len(window) - 1, -len(window) - 1) if half else made


def norms(kernel: Tensor, dims: int) -> Tensor:
    """Lengths of a kernel's output channels: (..., out). dims: how many dimensions one channel has."""
    return torch.linalg.vector_norm(kernel, dim=tuple(range(-dims, 0)))


def normed(weight: Tensor, change: Tensor, m: Tensor) -> Tensor:
    """m (K + dK) / |K + dK| - K, channel by channel, as a change of K. change: (..., *weight.shape)  m: (..., out)."""
    whole, dims = weight + change, weight.dim() - 1
    ratio = m / norms(whole, dims).clamp_min(torch.finfo(whole.dtype).tiny)
    return ratio.reshape(*ratio.shape, *[1] * dims) * whole - weight
