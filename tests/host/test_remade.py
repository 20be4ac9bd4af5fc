"""What the backward pass makes again: the same values and gradients, and nothing kept but what went in."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import luthier as lt
from luthier.host import Adaptation, Adapted
from luthier.host.places import weight as place
from luthier.host.places.remade import folded, remade
from luthier.instruments.saved import saved
from tests.host import bed

DENSE = ["loha", "vera", "randlora", "waveft", "fourierft"]
METHODS = [*DENSE, "diffusekrona", "lokr", "soka", "oft", "boft"]


def wide(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ a) @ b


def given() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (3, 20), (20, 4))
    return [torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_(True) for s in shapes]


def test_a_remade_function_has_its_gradients_twice() -> None:
    assert torch.autograd.gradcheck(lambda *t: remade(wide, *t), given())
    assert torch.autograd.gradgradcheck(lambda *t: remade(wide, *t), given())


def test_a_folded_weight_has_its_gradients_twice() -> None:
    x, a, _ = given()
    weight, bias = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    make = lambda w, b, a: (w + torch.tanh(a).T, b + a.sum(0).sin()[:1])
    same = lambda x, a: folded(make, x, weight, bias, [a])
    assert torch.allclose(same(x, a), linear(x, *make(weight, bias, a)))
    assert torch.autograd.gradcheck(same, (x, a)) and torch.autograd.gradgradcheck(same, (x, a))


def test_a_bias_that_is_not_changed_needs_no_gradient() -> None:
    x, a, _ = given()
    weight = torch.randn(20, 3, dtype=torch.float64)
    make = lambda w, b, a: (w + torch.tanh(a).T, b)
    for bias in (None, torch.randn(20, dtype=torch.float64)):
        assert torch.autograd.gradcheck(lambda x, a, b=bias: folded(make, x, weight, b, [a]), (x, a))


def test_only_what_goes_in_is_kept() -> None:
    tensors = given()
    with saved() as plain:
        wide(*tensors)
    with saved() as meter:
        remade(wide, *tensors)
    inputs = sum(t.numel() * t.element_size() for t in tensors)
    assert meter.bytes == inputs < plain.bytes


def test_autocast_is_the_same_when_it_is_made_again() -> None:
    tensors = [t.detach().float().requires_grad_(True) for t in given()]
    found = []
    for function in (wide, lambda *t: remade(wide, *t)):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(*tensors)
        assert y.dtype == torch.bfloat16
        found.append(torch.autograd.grad(y.float().pow(2).sum(), tensors))
    assert all(torch.equal(a, b) for a, b in zip(*found))


class Projections(nn.Module):
    """Query, key and value of one input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.query(x), self.key(x), self.value(x)], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_group_of_three_keeps_its_input_once(name: str, dtype: torch.dtype) -> None:
    kind = lt.methods.get(name)
    rank = {k: 8 for k in ("rank", "largest") if hasattr(kind, k)}
    model = Adapted(Projections(384).to(dtype))
    model.attach("main", Adaptation.new(kind(targets="query | key | value", **rank), model.base))
    model.train()
    x = torch.randn(32, 64, 384, dtype=dtype, requires_grad=True)
    with saved(model.parameters()) as meter:
        model.base(x)
    assert 0 < meter.bytes <= 1.1 * x.numel() * x.element_size()


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("base", ["gpt2", "llama"])  # fused and transposed; slices
def test_folded_and_not_give_the_same_values_and_gradients(name, base, scale, monkeypatch) -> None:
    kind = lt.methods.get(name)
    found, ways = [], []
    for limit in (True, False):
        monkeypatch.setattr(place, "folding", lambda x, w, limit=limit: ways.append(limit) or limit)
        model = Adapted(bed.base(base).double())
        small = {k: 4 for k in ("rank", "count") if hasattr(kind, k)}
        made = bed.shaken(Adaptation.new(kind(**small), model.base)).double()
        model.attach("main", made)
        for placed in made.placed():
            placed.scale = scale
        y = bed.result(model, bed.batch(base))
        y.pow(2).mean().backward()
        found.append([y.detach(), *(p.grad for p in made.trainable().values())])
    assert set(ways) == {True, False}
    for a, b in zip(*found, strict=True):
        bed.close(a, b, 1e-10)
