"""A frozen linear whose weight changes as a whole: the gradients of plain autograd, and no changed weight kept for backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.host import Adaptation, Adapted
from luthier.host.context import CURRENT
from luthier.host.places import weight as weight_place
from luthier.instruments.saved import saved
from luthier.methods.low_rank.dora import DoRA
from luthier.starts.singular import PiSSAStart
from tests.host import bed


class Layers(nn.Module):
    """A linear layer, one as GPT-2 stores it, and one without a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), Conv1D(width, width)
        self.three = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(torch.tanh(self.two(torch.tanh(self.one(x)))))


def attached(width: int = 6, dtype: torch.dtype = torch.float64, **options) -> Adapted:
    torch.manual_seed(0)
    model = Adapted(Layers(width).to(dtype))
    made = Adaptation.new(DoRA(rank=2, targets="one | two | three", **options), model.base)
    model.attach("main", bed.shaken(made.double() if dtype == torch.float64 else made))
    return model


def gradients(model: Adapted, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = model({"x": x}).hidden
    trained = list(model.adaptations["main"].trainable().values())
    return [y, *torch.autograd.grad(y.float().pow(2).sum(), [x, *trained])]


@pytest.mark.parametrize("shape", [(3, 6), (2, 5, 6), (2, 2, 3, 6)])
@pytest.mark.parametrize("start", [None, PiSSAStart()])
def test_gradients_equal_plain_autograd(shape, start, monkeypatch) -> None:
    model = attached(**({"start": start} if start else {}))
    x = torch.randn(shape, dtype=torch.float64)
    calls = []
    real = weight_place.folded
    monkeypatch.setattr(weight_place, "folded", lambda *a: (calls.append(1), real(*a))[1])
    got = gradients(model, x)
    assert len(calls) == 3
    monkeypatch.setattr(weight_place, "_folded", lambda *a: None)
    for a, b in zip(got, gradients(model, x), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_no_changed_weight_is_kept_for_backward(monkeypatch) -> None:
    model = attached(64, torch.float32)
    x = torch.randn(4, 8, 64, requires_grad=True)
    token = CURRENT.set(model.open((x,), {}))

    def kept() -> int:
        with saved([*model.parameters(), x]) as meter:
            y = model.base.one(x)
        del y
        return meter.bytes

    try:
        assert kept() == 0
        monkeypatch.setattr(weight_place, "_folded", lambda *a: None)
        assert kept() >= 64 * 64 * 4
    finally:
        CURRENT.reset(token)


def test_autocast_computes_in_its_dtype_and_trains_in_full() -> None:
    model, x = attached(dtype=torch.float32), torch.randn(4, 5, 6)
    exact = gradients(model, x)[2:]
    with torch.autocast("cpu", torch.bfloat16):
        y = model({"x": x.requires_grad_()}).hidden
    assert y.dtype == torch.bfloat16
    found = torch.autograd.grad(y.float().pow(2).sum(), list(model.adaptations["main"].trainable().values()))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32 and torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


@torch.no_grad()
def test_slices_of_one_module_and_a_coefficient_in_some_rows() -> None:
    """Rows that see other weights see all changes of their adaptation, each once."""
    base, x = bed.base("gpt2"), bed.batch("gpt2")
    model = Adapted(base)
    model.attach("main", 0.5 * bed.shaken(Adaptation.new(DoRA(rank=2), base)))
    got = bed.result(model, {**x, "adaptation": ["main", None, "main", None]})
    alone = bed.result(model, x)
    with model.using():
        without = bed.result(model, x)
    bed.close(got, torch.stack([alone[0], without[1], alone[2], without[3]]), 1e-5)
    assert not torch.allclose(alone, without, atol=1e-2)
