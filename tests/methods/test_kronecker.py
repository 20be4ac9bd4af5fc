"""DiffuseKronA (S337), LoKr, SoKA (S268): what their updates are, and what SoKA's start and ranks are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import luthier as lt
from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.adaptation import site_weight
from luthier.host.places.remade import remade
from luthier.methods.kronecker.diffusekrona import DiffuseKronA
from luthier.methods.kronecker.lokr import LoKr
from luthier.methods.kronecker.soka import SoKA, by_elbow, by_energy
from luthier.sources.kronecker import components, kron, spectrum, split
from tests.host import bed


def placed(part: Any) -> Any:
    """The part at its first site, away from its start."""
    return bed.shaken(Adaptation.new(part, bed.base("gpt2").double())).double().at()[0]


@pytest.mark.parametrize("a1, a2", [(4, 2), (8, 16), (64, 8), (1, 32), (5, 3)])
def test_diffusekrona_is_torch_kron_and_counts_so(a1: int, a2: int) -> None:
    part = DiffuseKronA(a1=a1, a2=a2, alpha=0.5, targets="mlp.up")
    at = placed(part)
    t, x = at.t(None), torch.randn(3, 7, 32, dtype=torch.float64)
    want = 0.5 * torch.kron(t.A, t.B)
    assert torch.allclose(part.delta(None, t), want)
    assert torch.allclose(part.shortcut(x, torch.zeros(()), t), x @ want.T)
    s = split(*want.shape, a1, a2)
    assert sum(v.numel() for v in at.values.values()) == s.a1 * s.a2 + s.b1 * s.b2
    assert want.shape == (s.a1 * s.b1, s.a2 * s.b2) and s.a1 <= a1 and s.a2 <= a2


def test_diffusekrona_reaches_full_rank_with_fewer_numbers_than_lora() -> None:
    at = placed(DiffuseKronA(a1=16, a2=4, targets="mlp.up"))
    rank = int(torch.linalg.matrix_rank(DiffuseKronA().delta(None, at.t(None))))
    lora = Adaptation.new(lt.methods.LoRA(rank=1, targets="mlp.up"), bed.base("gpt2")).at()[0]
    assert rank == 32
    assert sum(v.numel() for v in at.values.values()) < sum(v.numel() for v in lora.values.values())


def test_lokr_is_torch_kron_of_a_whole_and_a_low_rank_factor() -> None:
    part = LoKr(rank=2, alpha=3.0, factor=4)
    at = placed(part)
    t, x = at.t(None), torch.randn(2, 5, 32, dtype=torch.float64)
    want = 3.0 / 2 * torch.kron(t.C, t.B @ t.A)
    assert torch.allclose(part.delta(None, t), want)
    assert torch.allclose(part.shortcut(x, torch.zeros(()), t), x @ want.T)
    assert t.C.shape == (4, 4) and t.B.shape == (8, 2)
    with pytest.raises(OptionError, match="rank=9 is above 8"):
        Adaptation.new(LoKr(rank=9, factor=4), bed.base("gpt2"))


def test_soka_begins_with_the_largest_terms_and_is_the_base() -> None:
    base = bed.base("llama").double()
    made = Adaptation.new(SoKA(largest=5, elbow=False, energy=1.0), base).double()
    for at in made.at():
        weight, t = site_weight(base, at.site), at.t(None)
        _, sigma, _ = components(weight, SoKA().split(at.site))
        left_out = (weight - kron(t.U, t.V)).detach().square().sum()
        assert at.layout == {"rank": 5} and len(sigma) > 5
        assert float(left_out) == pytest.approx(float(sigma[5:].square().sum()), rel=1e-4)
    model, batch = Adapted(base), bed.batch("llama")
    with torch.no_grad():
        alone = bed.result(model, batch)
        with model.attached(made):
            assert torch.equal(bed.result(model, batch), alone)
        with model.attached(bed.shaken(made, 0.01)):
            assert not torch.allclose(bed.result(model, batch), alone, atol=1e-4)


def test_soka_ranks_grow_with_the_energy_and_stop_at_the_elbow() -> None:
    base = bed.base("bert")
    ranks = []
    for energy in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        made = Adaptation.new(SoKA(energy=energy, largest=1000, elbow=False), base)
        ranks.append([a.layout["rank"] for a in made.at()])
        for at, rank in zip(made.at(), ranks[-1]):
            share = spectrum(site_weight(base, at.site), SoKA().split(at.site)).square()
            share = share.cumsum(0) / share.sum()
            assert share[rank - 1] >= energy - 1e-9 and (rank == 1 or share[rank - 2] < energy)
    assert all(a <= b for low, high in pairwise(ranks) for a, b in zip(low, high)) and ranks[0] < ranks[-1]
    both = Adaptation.new(SoKA(energy=1.0, largest=1000), base)
    for at in both.at():
        sigma = spectrum(site_weight(base, at.site), SoKA().split(at.site))
        assert at.layout["rank"] == min(by_elbow(sigma), by_energy(sigma, 1.0)) < ranks[-1][0]


def test_an_elbow_is_where_a_spectrum_falls_off() -> None:
    assert by_elbow(torch.tensor([10.0, 9.0, 8.0, 1.0, 0.9, 0.8, 0.7])) == 3
    assert by_elbow(torch.tensor([5.0])) == by_elbow(torch.tensor([5.0, 4.0, 3.0])) == 1
    assert by_energy(torch.tensor([2.0, 1.0, 1.0]), 0.66) == 1


def test_sokas_start_says_where_it_belongs() -> None:
    base = bed.base("bert")
    base.encoder.layer[1].attention.self.query.weight.data.zero_()
    with pytest.raises(OptionError, match=r"layer.1.attention.self.query is zero"):
        Adaptation.new(SoKA(), base)
    with pytest.raises(OptionError, match="method soka"):
        Adaptation.new(lt.methods.make("lora", {"start": "kpsvd"}), bed.base("bert"))


def test_hadamard_through_squared_rank_is_the_dense_product() -> None:
    from luthier.methods.low_rank.loha import LoHa, applied, hadamard

    at = placed(LoHa(rank=3, alpha=6.0))
    t, x = at.t(None), torch.randn(2, 5, 32, dtype=torch.float64)
    dense = (t.B1 @ t.A1) * (t.B2 @ t.A2)
    given = (t.B1, t.A1, t.B2, t.A2)
    assert torch.equal(hadamard(*given), dense)
    assert torch.allclose(remade(applied, x, *given), x @ dense.T)
    assert torch.linalg.matrix_rank(dense) == 9  # 3 squared
    assert torch.allclose(LoHa(rank=3, alpha=6.0).delta(None, t), 2.0 * dense)
