"""A frozen linear with low-rank changes as one function: the same numbers as plain autograd, and little kept for backward."""

from __future__ import annotations

import copy
from contextvars import ContextVar

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.host import Adaptation, Adapted
from luthier.host.context import CURRENT
from luthier.host.options import known
from luthier.host.part import Part, T, spec
from luthier.host.places import factored
from luthier.host.places import weight as weight_place
from luthier.host.places.factored import Change, FactoredLinear, Factors, _mask
from luthier.host.sites import Site
from luthier.instruments.saved import saved
from luthier.methods import load_all
from luthier.methods.low_rank.lora import LoRA
from luthier.starts.singular import PiSSAStart
from tests.host import bed


class Attention(nn.Module):
    """Three projections of one input, and one on top: of linear layers, or as GPT-2 stores and fuses them."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.fused, self.out = Conv1D(3 * width, width), nn.Linear(width, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.fused(x).chunk(3, -1)
        return self.out(torch.tanh(self.query(x) * q) + torch.sigmoid(self.key(x) + k) * (self.value(x) + v))


EVERYWHERE = "query | key | value | fused | out"


def attached(width: int = 6, rank: int = 2, dtype: torch.dtype = torch.float64, **options) -> Adapted:
    torch.manual_seed(0)
    model = Adapted(Attention(width).to(dtype))
    made = Adaptation.new(LoRA(rank=rank, targets=EVERYWHERE, **options), model.base)
    model.attach("main", bed.shaken(made.double() if dtype == torch.float64 else made))
    return model


def gradients(model: Adapted, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = model({"x": x}).hidden
    trained = list(model.adaptations.parameters())
    return [
        y,
        *torch.autograd.grad(
            y.float().pow(2).sum() if y.dtype != torch.float64 else y.pow(2).sum(), [x, *trained]
        ),
    ]


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_place, "_factored", lambda *a: None)


SHAPES = [(3, 6), (20, 6), (2, 3, 6), (4, 9, 6), (2, 2, 5, 6)]


@pytest.mark.parametrize("times", [0.0, 100.0], ids=["beside", "folded"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_plain_autograd(shape, times, monkeypatch) -> None:
    monkeypatch.setattr(factored, "STANDS_FOR", ContextVar("times", default=times))
    model, x = attached(), torch.randn(shape, dtype=torch.float64)
    calls = []
    real = FactoredLinear.apply
    monkeypatch.setattr(FactoredLinear, "apply", lambda *a: (calls.append(1), real(*a))[1])
    got = gradients(model, x)
    assert len(calls) == 5
    plain(monkeypatch)
    for a, b in zip(got, gradients(model, x), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(model({"x": x}).hidden, got[0], rtol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_two_adaptations_and_slices_of_fused_projections(name: str, monkeypatch) -> None:
    base = bed.base(name).double()
    model = Adapted(base)
    for i, targets in enumerate(("attention.*", "attention.query | attention.value")):
        made = bed.shaken(Adaptation.new(LoRA(rank=2 + i, targets=targets), base, seed=i), seed=i)
        model.attach(f"a{i}", 0.3 * made if i else made)
    x = bed.batch(name)
    trained = list(model.adaptations.parameters())

    def run() -> list[torch.Tensor]:
        y = model(x).logits
        return [y, *torch.autograd.grad(y.pow(2).mean(), trained)]

    got = run()
    plain(monkeypatch)
    for a, b in zip(got, run(), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)


def numbers(rows: int) -> tuple[list[torch.Tensor], list[Change]]:
    torch.manual_seed(1)
    shapes = [(rows, 4), (7, 4), (7,), (7, 2), (2, 4), (7, 2), (2, 4), (3, 1), (1, 4)]
    made = [torch.randn(s, dtype=torch.float64) for s in shapes]
    changes = [Change(None, 2.0, 0.0), Change(None, -2.0, 0.0), Change((2, 5), 0.5, 0.0)]
    return made, changes


@pytest.mark.parametrize(
    ("folds", "dropout"), [(False, 0.0), (True, 0.0), (False, 0.4)], ids=["beside", "folded", "dropout"]
)
def test_first_and_second_derivatives(folds: bool, dropout: float) -> None:
    (x, w, b, *factors), changes = numbers(3)
    changes = [c._replace(dropout=dropout, seed=5, folds=folds) for c in changes]
    wanted = [t.requires_grad_() for t in (x, *factors)]

    def function(x, *factors):
        return FactoredLinear.apply(x, w, b, torch.float64, changes, *factors)

    assert torch.autograd.gradcheck(function, wanted)
    assert torch.autograd.gradgradcheck(function, wanted)


def test_dropout_is_drawn_again_and_only_while_training() -> None:
    model, x = attached(dropout=0.5), torch.randn(5, 6, dtype=torch.float64)
    model.eval()
    assert torch.equal(model({"x": x}).hidden, model({"x": x}).hidden)
    model.train()
    torch.manual_seed(3)
    first = gradients(model, x)
    assert not torch.allclose(first[0], gradients(model, x)[0])
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(model, x), strict=True))
    mask = _mask(torch.empty(200, 300), Change(None, 1.0, 0.3, 7))
    assert abs(mask.mean().item() - 1) < 0.01 and set(mask.unique().tolist()) == {0.0, mask.max().item()}


def test_the_mean_over_dropout_is_the_update() -> None:
    torch.manual_seed(0)
    model = Adapted(nn.Sequential(nn.Linear(6, 3)).double())
    model.attach("main", bed.shaken(Adaptation.new(LoRA(rank=2, targets="0", dropout=0.4), model.base), 1.0))
    x = torch.randn(1, 6, dtype=torch.float64)
    with torch.no_grad():
        want = model.eval()({"x": x}).hidden
        got = model.train()({"x": x.expand(20000, -1)}).hidden
    spread = got.std(0)
    assert spread.min() > 0.1
    assert ((got.mean(0) - want[0]).abs() < 4 * spread / 20000**0.5).all()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_recomputes_the_same(dropout: float) -> None:
    base = bed.base("bert")
    model, x = Adapted(base), bed.batch("bert")
    model.attach("main", bed.shaken(Adaptation.new(LoRA(rank=2, dropout=dropout), base)))
    model.train()
    found = []
    for on in (False, True):
        model.checkpoint(on)
        torch.manual_seed(0)
        y = model(x).hidden.pow(2).sum()
        found.append(torch.autograd.grad(y, list(model.adaptations.parameters())))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*found, strict=True))


def kept(model: Adapted, x: torch.Tensor) -> int:
    """Bytes of unique storages saved for backward, weights left out."""
    with saved(model.parameters()) as meter:
        y = model.base.query(x), model.base.key(x), model.base.value(x)
    del y
    return meter.bytes


@pytest.mark.parametrize(("dropout", "limit"), [(0.0, 1.1), (0.1, 1.3)])
def test_the_shared_input_is_saved_once(dropout: float, limit: float) -> None:
    model = attached(64, 2, torch.bfloat16, dropout=dropout)
    model.train()
    x = torch.randn(8, 32, 64, dtype=torch.bfloat16, requires_grad=True)
    token = CURRENT.set(model.open((x,), {}))
    try:
        assert kept(model, x) <= limit * x.numel() * 2
    finally:
        CURRENT.reset(token)


def test_an_anchored_start_saves_no_more_of_the_input() -> None:
    model = attached(64, 2, torch.bfloat16, start=PiSSAStart())
    x = torch.randn(16, 128, 64, dtype=torch.bfloat16, requires_grad=True)
    token = CURRENT.set(model.open((x,), {}))
    try:
        assert x.numel() * 2 <= kept(model, x) <= 1.1 * x.numel() * 2
    finally:
        CURRENT.reset(token)


def test_half_precision_does_not_round_the_change_away() -> None:
    """A change smaller than a bf16 weight can hold still moves the output."""
    model = Adapted(nn.Sequential(nn.Linear(64, 8, bias=False)).bfloat16())
    with torch.no_grad():
        model.base[0].weight.copy_(torch.tensor([1.0, -1.0]).repeat(32))
    made = Adaptation.new(LoRA(rank=1, alpha=1, targets="0"), model.base)
    with torch.no_grad():
        for p in made.parameters():
            p.fill_(2**-6)
    model.attach("main", made)
    y = model({"x": torch.ones(100, 64).bfloat16()}).hidden
    assert torch.equal(y, torch.full_like(y, 64 * 2**-12))


def test_autocast_computes_in_its_dtype_and_trains_in_full() -> None:
    model = attached(dtype=torch.float32)
    x = torch.randn(4, 5, 6)
    exact = gradients(model, x)[2:]
    with torch.autocast("cpu", torch.bfloat16):
        y = model({"x": x.requires_grad_()}).hidden
    assert y.dtype == torch.bfloat16
    found = torch.autograd.grad(y.float().pow(2).sum(), list(model.adaptations.parameters()))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


def test_compile_and_per_example_gradients_take_the_plain_way() -> None:
    model, x = attached(dtype=torch.float32), torch.randn(4, 6)
    want = gradients(model, x)[0]
    compiled = torch.compile(lambda v: model({"x": v}).hidden, backend="aot_eager")
    assert torch.allclose(compiled(x), want, atol=1e-5)
    trained = dict(model.named_parameters())
    trained = {k: v for k, v in trained.items() if v.requires_grad}

    def loss(p, row):
        return torch.func.functional_call(model, p, ({"x": row[None]},)).hidden.pow(2).sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(trained, x)
    whole = torch.autograd.grad(model({"x": x}).hidden.pow(2).sum(), list(trained.values()))
    for a, b in zip(each.values(), whole, strict=True):
        assert torch.allclose(a.sum(0), b, rtol=1e-3, atol=1e-4)


def test_a_trained_or_exchanged_layer_takes_the_plain_way() -> None:
    model, x = attached(), torch.randn(4, 6, dtype=torch.float64)
    model.base.query.weight.requires_grad_(True)
    y = model({"x": x}).hidden.sum()
    assert torch.autograd.grad(y, model.base.query.weight)[0].abs().sum() > 0
    model.detach()

    base = Attention().double()
    base.out.forward = lambda h: torch.zeros(len(h), 4, dtype=h.dtype)  # type: ignore[method-assign]
    other = Adapted(base)
    other.attach("main", bed.shaken(Adaptation.new(LoRA(rank=2, targets="out"), base)))
    y = other({"x": x}).hidden
    assert (
        y.abs().max() > 0 and torch.linalg.matrix_rank(y) <= 2
    )  # the change alone, on top of what is now there


def test_a_copy_and_a_merge_agree_with_the_function() -> None:
    model, x = attached(dropout=0.2), torch.randn(30, 6, dtype=torch.float64)
    model.eval()
    want = model({"x": x}).hidden
    assert torch.equal(copy.deepcopy(model)({"x": x}).hidden, want)
    before = [p.clone() for p in model.base.parameters()]
    model.merge("main")
    assert torch.allclose(model({"x": x}).hidden, want, rtol=1e-12)
    model.unmerge("main")
    assert all(torch.equal(a, b) for a, b in zip(before, model.base.parameters(), strict=True))


def test_factors_are_the_delta() -> None:
    """For every method that names factors."""
    load_all()
    found = [c for c in known(Part).values() if getattr(c, "factors", None) is not None]
    assert LoRA in found
    for cls in found:
        part, site = cls(), Site("l", "l", "other", in_features=12, out_features=9)
        rng = torch.Generator().manual_seed(0)
        made = part.tensors(site, part.layout(site))
        t = T({k: torch.randn(spec(v).shape, generator=rng) for k, v in made.items()})
        t.layout, t.members = part.layout(site), ()
        f = part.factors(t)
        assert torch.allclose(f.scale * f.up @ f.down, part.delta(torch.zeros(9, 12), t), atol=1e-5), cls.name


@torch.no_grad()
def test_a_start_is_taken_off_without_rounding_that_depends_on_its_size() -> None:
    torch.manual_seed(0)
    b, a = torch.randn(6, 2) * 100, torch.randn(2, 5) * 100
    start = Factors(b, a, 0.5)
    assert not (lambda f: f.up @ f.down)(start.less(start)).any()
    moved = Factors(b + torch.randn(6, 2) * 1e-3, a + torch.randn(2, 5) * 1e-3, 0.5)
    want = moved.up.double() @ moved.down.double() - b.double() @ a.double()
    left = moved.less(start)
    assert torch.allclose(left.up.double() @ left.down.double(), want, rtol=1e-5, atol=1e-6)
    rough = (left.up.bfloat16() @ left.down.bfloat16()).double()
    assert (rough - want).norm() < 0.02 * want.norm()
    naive = (moved.up.bfloat16() @ moved.down.bfloat16() - b.bfloat16() @ a.bfloat16()).double()
    assert (naive - want).norm() > 10 * (rough - want).norm()
