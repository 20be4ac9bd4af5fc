"""Kronecker products in row-major order against torch.kron, and matrices taken apart into them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.sources.kronecker import Split, components, divisor, kron, product, split

SIZES = st.integers(1, 5)


def factors(terms: int, s: Split, *head: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    left = torch.randn(*head, terms, s.a1, s.a2, generator=rng, dtype=torch.float64)
    return left, torch.randn(*head, terms, s.b1, s.b2, generator=rng, dtype=torch.float64)


@given(SIZES, SIZES, SIZES, SIZES, st.integers(1, 3))
def test_the_product_on_activations_is_torch_kron(a1, a2, b1, b2, terms):
    left, right = factors(terms, Split(a1, a2, b1, b2))
    dense = sum(torch.kron(u, v) for u, v in zip(left, right))
    x = torch.randn(2, 3, a2 * b2, dtype=torch.float64)
    assert torch.allclose(kron(left, right), dense, atol=1e-12)
    assert torch.allclose(product(x, left, right), x @ dense.T, atol=1e-10)
    assert torch.allclose(product(x[0, 0], left, right), x[0, 0] @ dense.T, atol=1e-10)


@given(SIZES, SIZES, SIZES, SIZES)
def test_each_row_has_factors_of_its_own(a1, a2, b1, b2):
    left, right = factors(2, Split(a1, a2, b1, b2), 3)
    x = torch.randn(3, 4, a2 * b2, dtype=torch.float64)
    for row, y in enumerate(product(x, left, right)):
        assert torch.allclose(y, product(x[row], left[row], right[row]), atol=1e-12)


@given(SIZES, SIZES, SIZES, SIZES)
def test_all_terms_are_the_matrix_and_what_is_left_out_is_the_tail(a1, a2, b1, b2):
    s = Split(a1, a2, b1, b2)
    weight = torch.randn(a1 * b1, a2 * b2, dtype=torch.float64)
    u, sigma, v = components(weight, s)
    assert len(sigma) == s.terms
    scaled = sigma[:, None, None] * u
    assert torch.allclose(kron(scaled, v), weight, atol=1e-12)
    for terms in range(s.terms):
        left_out = (weight - kron(scaled[:terms], v[:terms])).square().sum()
        assert float(left_out) == pytest.approx(float(sigma[terms:].square().sum()), rel=1e-8)


@given(st.integers(1, 200), st.integers(0, 20))
def test_a_divisor_divides_and_no_larger_one_does(number, most):
    found, bound = divisor(number, most), most or number**0.5
    assert number % found == 0 and found <= bound
    assert not [k for k in range(found + 1, int(bound) + 1) if number % k == 0]
    assert split(number, 12, most, 3)[1:4:2] == (3, 4)
