"""Cayley's transform and butterflies against explicit matrices, and what OFT and BOFT keep of a weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import OptionError
from luthier.host import Adaptation
from luthier.methods.orthogonal.boft import BOFT
from luthier.methods.orthogonal.oft import OFT
from luthier.sources.orthogonal import butterfly, cayley, skew
from tests.host import bed


def drawn(blocks: int, size: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(size)
    return torch.randn(blocks, size * (size - 1) // 2, generator=rng, dtype=torch.float64)


@given(st.integers(2, 9), st.integers(1, 4))
def test_cayley_makes_rotations(size: int, blocks: int) -> None:
    q = drawn(blocks, size)
    r, one = cayley(q, size), torch.eye(size, dtype=torch.float64).expand(blocks, -1, -1)
    assert torch.allclose(r @ r.mT, one, atol=1e-10) and torch.allclose(r.det(), torch.ones(blocks).double())
    turn = skew(q, size)
    assert torch.equal(turn, -turn.mT) and torch.allclose(r, torch.linalg.inv(one + turn) @ (one - turn))
    assert torch.equal(turn[0, 0, 1:], q[0, : size - 1])
    assert torch.equal(cayley(torch.zeros_like(q), size), one)


def by_index(r: torch.Tensor, factors: int, width: int) -> torch.Tensor:
    """The butterfly as a matrix, from which runs a block of each factor joins."""
    size = r.shape[-1]
    run, per = size // 2, width // size
    made = torch.eye(width, dtype=torch.float64)
    for i in range(factors):
        factor, block = torch.zeros(width, width, dtype=torch.float64), 0
        for first in range(0, width // run, 2 ** (i + 1)):
            for j in range(first, first + 2**i):
                where = [u * run + k for u in (j, j + 2**i) for k in range(run)]
                factor[torch.tensor(where)[:, None], torch.tensor(where)] = r[i * per + block]
                block += 1
        made = factor @ made
    return made


@pytest.mark.parametrize("size, factors, width", [(4, 1, 12), (4, 2, 16), (2, 3, 16), (4, 3, 32), (6, 2, 24)])
def test_a_butterfly_is_its_matrix(size: int, factors: int, width: int) -> None:
    r = cayley(drawn(factors * width // size, size), size)
    want = by_index(r, factors, width)
    assert torch.allclose(want @ want.T, torch.eye(width, dtype=torch.float64), atol=1e-10)
    x = torch.randn(3, 5, width, dtype=torch.float64)
    assert torch.allclose(butterfly(x, r, factors), x @ want.T)
    assert torch.allclose(butterfly(butterfly(x, r, factors), r, factors, back=True), x)
    rows = torch.stack([r, r.mT, cayley(drawn(len(r), size) + 1, size)])
    for i, y in enumerate(butterfly(x, rows, factors)):
        assert torch.allclose(y, butterfly(x[i], rows[i], factors))


def test_a_whole_butterfly_lets_every_number_reach_every_other() -> None:
    for factors, reached in ((1, 2), (2, 4), (3, 8), (4, 16)):
        r = cayley(drawn(factors * 8, 2), 2)
        matrix = butterfly(torch.eye(16, dtype=torch.float64), r, factors)
        assert ((matrix.abs() > 1e-12).sum(-1) == reached).all()


@pytest.mark.parametrize("part", [OFT(block=8), BOFT(block=4, levels=3)], ids=str)
@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_merging_keeps_lengths_and_angles(part, base: str) -> None:
    made = bed.shaken(Adaptation.new(part, bed.base(base).double())).double()
    for at in made.at():
        t, s = at.t(None), at.site
        weight = torch.randn(s.out_features, s.in_features, dtype=torch.float64)
        merged = weight + part.delta(weight, t)
        assert torch.allclose(merged @ merged.T, weight @ weight.T)
        assert not torch.allclose(merged, weight, atol=0.1)
        x = torch.randn(2, 3, s.in_features, dtype=torch.float64)
        assert torch.allclose(part.before(x, t) @ weight.T, x @ merged.T)


def test_one_factor_is_oft_and_what_does_not_divide_is_refused() -> None:
    base, t = bed.base("bert"), {"targets": "attention.key"}
    one = bed.shaken(Adaptation.new(OFT(block=4, **t), base)).at()[0]
    two = bed.shaken(Adaptation.new(BOFT(block=4, levels=1, **t), base)).at()[0]
    weight = torch.randn(32, 32)
    assert torch.equal(one.part.delta(weight, one.t(None)), two.part.delta(weight, two.t(None)))
    with pytest.raises(OptionError, match=r"block=5 does not divide the 32 inputs .* block=2, 4, 8, 16, 32"):
        Adaptation.new(OFT(block=5), base)
    with pytest.raises(OptionError, match=r"block=16 with levels=3 .* block=2, 4, 8\."):
        Adaptation.new(BOFT(block=16, levels=3), base)
