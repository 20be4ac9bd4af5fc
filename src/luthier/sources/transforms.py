"""A weight's change from coefficients: the inverse of a wavelet or a Fourier transform, or the coefficients themselves.

    wavelet     one level, two-dimensional: the map's quarters are the sub-bands, the right ones high-pass along a row, the lower ones
                along a column
    fourier     the real part of the inverse discrete Fourier transform, as torch.fft.ifft2 (1 / (m n) in front)
    identity    the map

A filter of L taps needs (n + L - 1) // 2 coefficients a band for n values, so that the map of an odd side, or of a longer filter than
Haar's, is larger than the weight; what is too much is cut off. Pure functions.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from math import comb
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d

Transform = Literal["wavelet", "fourier", "identity"]
Wavelet = Literal["db1", "db2", "db3", "db4", "db5", "db6"]


@cache
def low_pass(wavelet: str) -> tuple[float, ...]:
    """The reconstruction low-pass filter of Daubechies' wavelet dbN, 2N taps of norm 1 (minimal phase; db1 is Haar's)."""
    n = int(wavelet.removeprefix("db"))
    # (1 - y)^N P(y) + y^N P(1 - y) = 1, y = (2 - z - 1/z) / 4: the roots inside the unit circle make the filter
    inside = []
    for y in np.roots([comb(n - 1 + k, k) for k in range(n - 1, -1, -1)]):
        pair = np.roots([1, 4 * y - 2, 1])
        inside.append(pair[np.argmin(abs(pair))])
    taps = np.real(np.poly([-1.0] * n + inside))
    return tuple(float(t) for t in taps * (2**0.5 / taps.sum()))


def high_pass(wavelet: str) -> tuple[float, ...]:
    """The reconstruction high-pass filter: the low-pass one backwards, in alternating signs."""
    low = low_pass(wavelet)
    return tuple((-1) ** k * t for k, t in enumerate(reversed(low)))


def map_size(outputs: int, inputs: int, transform: str, wavelet: str = "db1") -> tuple[int, int]:
    """(rows, columns) of the coefficient map for a weight."""
    if transform != "wavelet":
        return outputs, inputs
    taps = len(low_pass(wavelet))
    return (outputs + taps - 1) // 2 * 2, (inputs + taps - 1) // 2 * 2


def inverse(coefficients: Tensor, outputs: int, inputs: int, transform: str, wavelet: str = "db1") -> Tensor:
    """(..., rows, columns) of `map_size` -> (..., outputs, inputs)."""
    if transform == "identity":
        return coefficients
    if transform == "fourier":
        wide = coefficients.float() if coefficients.dtype.itemsize < 4 else coefficients
        return torch.fft.ifft2(wide).real.to(coefficients.dtype)
    bands = torch.stack([b for half in coefficients.chunk(2, -2) for b in half.chunk(2, -1)], -3)
    filters = [coefficients.new_tensor(f) for f in (low_pass(wavelet), high_pass(wavelet))]
    kernels = torch.stack([torch.outer(rows, columns) for rows, columns in product(filters, filters)])
    made = conv_transpose2d(
        bands.reshape(-1, *bands.shape[-3:]), kernels[:, None], stride=2, padding=len(filters[0]) - 2
    )
    return made[:, 0, :outputs, :inputs].reshape(*coefficients.shape[:-2], outputs, inputs)
