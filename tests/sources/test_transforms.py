"""Inverse transforms against explicit matrices, and Daubechies' filters against what defines them.

PyWavelets is not among the libraries of the tests: the matrix of the transform, written out from the filters, stands for it, and the
published taps of two wavelets.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.sources.transforms import high_pass, inverse, low_pass, map_size

NAMES = [f"db{n}" for n in range(1, 7)]
PUBLISHED = {  # Daubechies, Ten Lectures on Wavelets (1992), table 6.1
    "db1": (0.7071067811865476, 0.7071067811865476),
    "db2": (0.4829629131445341, 0.8365163037378079, 0.2241438680420134, -0.1294095225512604),
    "db3": (
        0.3326705529500826,
        0.8068915093110925,
        0.4598775021184915,
        -0.1350110200102546,
        -0.0854412738820267,
        0.0352262918857095,
    ),
}


def synthesis(n: int, name: str) -> torch.Tensor:
    """(n, map side): its columns are the two filters, two steps on each time; the first len - 2 values are in front of the signal."""
    taps = len(low_pass(name))
    half = map_size(n, n, "wavelet", name)[0] // 2
    made = torch.zeros(2 * half - 2 + taps, 2 * half, dtype=torch.float64)
    for k in range(half):
        for column, band in ((k, low_pass(name)), (half + k, high_pass(name))):
            made[2 * k : 2 * k + taps, column] = torch.tensor(band, dtype=torch.float64)
    return made[taps - 2 : taps - 2 + n]


@pytest.mark.parametrize("name", NAMES)
def test_filters_are_daubechies(name: str) -> None:
    low = torch.tensor(low_pass(name), dtype=torch.float64)
    high = torch.tensor(high_pass(name), dtype=torch.float64)
    n = len(low) // 2
    assert len(low) == 2 * int(name[2:])
    if name in PUBLISHED:
        assert low.tolist() == pytest.approx(PUBLISHED[name], abs=1e-12)
    for shift in range(n):  # orthonormal to their even shifts, and to each other
        own = torch.tensor(1.0 if shift == 0 else 0.0, dtype=torch.float64)
        ahead, behind = 2 * shift, 2 * (n - shift)
        for f in (low, high):
            assert torch.isclose(f[ahead:] @ f[:behind], own, atol=1e-9)
        assert abs(float(low[ahead:] @ high[:behind])) < 1e-9
        assert abs(float(high[ahead:] @ low[:behind])) < 1e-9
    for power in range(n):  # as many vanishing moments as the name says
        assert abs(float((torch.arange(2 * n, dtype=torch.float64) ** power) @ high)) < 1e-5


@given(st.sampled_from(NAMES), st.integers(1, 21), st.integers(1, 21))
def test_the_inverse_wavelet_transform_is_its_matrix(name: str, outputs: int, inputs: int) -> None:
    rows, columns = map_size(outputs, inputs, "wavelet", name)
    c = torch.randn(2, rows, columns, dtype=torch.float64)
    want = synthesis(outputs, name) @ c @ synthesis(inputs, name).T
    assert torch.allclose(inverse(c, outputs, inputs, "wavelet", name), want, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_wavelet_transform_takes_apart_comes_back(name: str) -> None:
    """Away from the edge every value is the sum of its coefficients: analysis is the transpose."""
    n = 40
    s = synthesis(n, name)
    inner = slice(12, n - 12)
    assert torch.allclose((s @ s.T)[inner, inner], torch.eye(n, dtype=torch.float64)[inner, inner], atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 6), (10, 2), (32, 32)])
def test_haar_keeps_norms_and_is_undone_on_even_sides(shape: tuple[int, int]) -> None:
    assert map_size(*shape, "wavelet") == shape
    c = torch.randn(shape, dtype=torch.float64)
    made = inverse(c, *shape, "wavelet")
    assert made.norm() == pytest.approx(c.norm())
    back = synthesis(shape[0], "db1").T @ made @ synthesis(shape[1], "db1")
    assert torch.allclose(back, c)
    one = torch.zeros(shape, dtype=torch.float64)
    one[shape[0] // 2, 0] = 1.0  # a lower quarter: high-pass along a column
    block = inverse(one, *shape, "wavelet")[:2, :2]
    assert torch.allclose(block, torch.tensor([[0.5, 0.5], [-0.5, -0.5]], dtype=torch.float64))


@given(st.integers(1, 9), st.integers(1, 9))
def test_the_inverse_fourier_transform_is_its_matrix(outputs: int, inputs: int) -> None:
    c = torch.randn(outputs, inputs, dtype=torch.float64)
    u, v = (torch.arange(n, dtype=torch.float64) / n for n in (outputs, inputs))
    want = torch.zeros(outputs, inputs, dtype=torch.float64)
    for j in range(outputs):
        for k in range(inputs):
            angle = 2 * torch.pi * (j * u[:, None] * 1.0 + k * v[None, :])
            want += c[j, k] * torch.cos(angle) / (outputs * inputs)
    assert torch.allclose(inverse(c, outputs, inputs, "fourier"), want, atol=1e-10)
