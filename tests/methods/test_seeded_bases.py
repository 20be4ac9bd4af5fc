"""VeRA and RandLoRA (S190): bases that a seed makes, which no file holds, and updates of full rank."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.host import Adaptation, Adapted
from luthier.host.bank import Bank
from luthier.host.files import load, save
from luthier.methods.low_rank.randlora import RandLoRA
from luthier.methods.low_rank.vera import VeRA
from luthier.sources.seeded import positions, ternary, uniform
from tests.host import bed

METHODS = {"vera": VeRA(rank=8), "randlora": RandLoRA(rank=4), "ternary": RandLoRA(rank=4, basis="ternary")}


@pytest.mark.parametrize("name", METHODS)
def test_a_file_holds_what_trains_and_the_bases_come_back(name: str, tmp_path) -> None:
    model = lt.load("builtin:llama", device="cpu")
    made = bed.shaken(Adaptation.new(METHODS[name], model.base, seed=7))
    state = made.state()
    assert {k.rsplit(".")[-1] for k in state} <= {"d", "b", "lam", "gamma"}
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in made.trainable().values())
    save(made, tmp_path / "a", "base")
    again = load(tmp_path / "a", model.base, "base")
    assert all(
        torch.equal(v, again.state(everything=True)[k]) for k, v in made.state(everything=True).items()
    )
    size = (tmp_path / "a" / "tensors.safetensors").stat().st_size
    assert (
        size <= 1.05 * 4 * sum(p.numel() for p in made.trainable().values()) + 8192
    )  # a header for few numbers


@pytest.mark.parametrize("name", METHODS)
def test_the_bases_depend_on_the_option_and_on_nothing_else(name: str) -> None:
    base, part = bed.base("bert"), METHODS[name]
    one, two = (Adaptation.new(part, base, seed=s).placed()[0].common for s in (0, 1))
    assert all(torch.equal(one[k], two[k]) for k in ("A", "B"))
    other = Adaptation.new(type(part)(rank=part.rank, seed=1), base).placed()[0].common
    assert not torch.equal(one["A"], other["A"]) and not torch.equal(one["A"][0, :4], one["B"].flatten()[:4])


@pytest.mark.parametrize("base", ["gpt2", "llama", "t5"])
def test_randlora_is_its_formula_on_wide_and_on_tall_weights(base: str) -> None:
    model = bed.base(base).double()
    part = RandLoRA(rank=4, targets="*attention.key | mlp.up | mlp.down", scale=3.0)
    made = bed.shaken(Adaptation.new(part, model)).double()
    shapes = set()
    for at in made.at():
        t, s = at.t(None), at.site
        shapes.add((s.out_features > s.in_features) - (s.out_features < s.in_features))
        least, most = sorted((s.in_features, s.out_features))
        sum_ = sum(
            t.B[n, :most] @ torch.diag(t.lam[n]) @ t.A[:, :least] @ torch.diag(t.gamma[n])
            for n in range(-(-least // 4))
        )
        want = 3.0 * (sum_ if s.out_features >= s.in_features else sum_.T)
        weight = torch.zeros(s.out_features, s.in_features, dtype=torch.float64)
        assert torch.allclose(part.delta(weight, t), want)
        x = torch.randn(2, 3, s.in_features, dtype=torch.float64)
        y = torch.zeros(2, 3, s.out_features, dtype=torch.float64)
        assert torch.allclose(part.shortcut(x, y, t), x @ want.T)
        assert torch.linalg.matrix_rank(want) == least
    assert {-1, 1} <= shapes


def test_vera_is_its_formula() -> None:
    model = bed.base("llama").double()
    part = VeRA(rank=6, targets="*attention.key | mlp.down")
    made = bed.shaken(Adaptation.new(part, model)).double()
    for at in made.at():
        t, s = at.t(None), at.site
        want = torch.diag(t.b) @ t.B[: s.out_features] @ torch.diag(t.d) @ t.A[:, : s.in_features]
        weight = torch.zeros(s.out_features, s.in_features, dtype=torch.float64)
        assert torch.allclose(part.delta(weight, t), want)
        x = torch.randn(2, s.in_features, dtype=torch.float64)
        y = torch.zeros(2, s.out_features, dtype=torch.float64)
        assert torch.allclose(part.shortcut(x, y, t), x @ want.T)


@pytest.mark.parametrize("name", METHODS)
def test_a_bank_of_them_holds_one_pair_of_bases(name: str) -> None:
    base = bed.base("bert").double()
    many = {str(i): bed.shaken(Adaptation.new(METHODS[name], base), seed=i).double() for i in range(4)}
    bank, model, batch = Bank(base, many), Adapted(base), bed.batch("bert")
    held = bank.adaptation.placed()[0].common
    assert {k: tuple(v.shape) for k, v in held.items()} == {
        k: tuple(v.shape) for k, v in many["0"].placed()[0].common.items()
    }
    with torch.no_grad():
        with model.attached(bank.adaptation):
            mixed = bank(model, batch, list("0123"))
        for i, a in enumerate(many.values()):
            with model.attached(a):
                bed.close(mixed.hidden[i], model(batch).hidden[i], 1e-9)


def test_drawn_numbers_have_unit_deviation_and_positions_never_repeat() -> None:
    rng = torch.Generator().manual_seed(0)
    for draw in (uniform, ternary):
        made = draw((400, 500), rng)
        assert float(made.std()) == pytest.approx(1.0, abs=0.01) and abs(float(made.mean())) < 0.01
    odds = [float((made == v).float().mean()) for v in (-(3**0.5), 0.0, 3**0.5)]
    assert odds == pytest.approx([1 / 6, 2 / 3, 1 / 6], abs=0.005)
    for count, size in ((5, 1000), (1000, 1000), (300, 1000), (200, 1000), (0, 10)):
        found = positions(count, size, torch.Generator().manual_seed(3)).tolist()
        assert len(set(found)) == len(found) == count and all(0 <= i < size for i in found)
