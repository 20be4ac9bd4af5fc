"""Starts that take components of the weights over: PiSSA, SoMA (S246), CorDA (S013). Products are compared, never factors."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.adaptation import site_weight
from luthier.host.calibrate import calibrate
from luthier.methods import load_all, make
from luthier.methods.low_rank.corda import CorDA
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.low_rank.pissa import PiSSA
from luthier.methods.low_rank.soma import SoMA
from luthier.signals.optimisers import DECAYS, adamw, cosine, schedule
from luthier.starts.corda import CorDAStart, damped
from luthier.starts.singular import PiSSAStart, SoMAStart, factors_of
from tests.host import bed

WHERE = "projections"


def products(made: Adaptation) -> dict[str, torch.Tensor]:
    """gain * B A by site."""
    return {a.site.name: a.part.delta(None, a.t(None)).detach() for a in made.at()}


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("largest", [True, False])
def test_a_start_is_the_asked_components_whatever_the_scale(name: str, largest: bool) -> None:
    base = bed.base(name)
    start = PiSSAStart() if largest else SoMAStart()
    for method in (
        LoRA(rank=5, alpha=13.0, start=start, targets=WHERE),
        PiSSA(rank=5, start=start, targets=WHERE),
    ):
        made = Adaptation.new(method, base)
        for at in made.at():
            w = site_weight(base, at.site)
            u, s, vh = torch.linalg.svd(w.double(), full_matrices=False)
            kept = slice(0, 5) if largest else slice(-5, None)
            want = (u[:, kept] * s[kept]) @ vh[kept]
            bed.close(products(made)[at.site.name].double(), want, 1e-5)
            a, b = (at.values[k].detach() * method.gain() ** 0.5 for k in "AB")
            bed.close(a @ a.T, torch.diag(s[kept]).float(), 1e-5)  # the values are shared out evenly
            bed.close(b.T @ b, torch.diag(s[kept]).float(), 1e-5)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
@pytest.mark.parametrize("start", ["pissa", "soma", "corda"])
@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
@torch.no_grad()
def test_step_0_is_the_base_and_a_trained_one_merges(name: str, start: str, method: str) -> None:
    load_all()
    base, x = bed.base(name), bed.batch(name)
    part, model = make(method, {"rank": 3, "start": start, "targets": WHERE}), Adapted(base)
    want = bed.result(model, x)
    found = calibrate(model, part.sites(model.structure), part.start.asks(part), [x])
    made = Adaptation.new(part, base, statistics=found)
    model.attach("main", made)
    assert torch.equal(bed.result(model, x), want)
    base.double(), bed.shaken(made.double())
    got = bed.result(model, x)
    assert not torch.allclose(got, want.double(), atol=1e-2)
    model.merge("main")
    bed.close(bed.result(model, x), got, 1e-9)


def test_residual_and_components_are_the_weight() -> None:
    base = bed.base("bert")
    for rank, start in ((5, PiSSAStart()), (5, SoMAStart()), (32, SoMAStart())):
        made = Adaptation.new(LoRA(rank=rank, start=start, targets=WHERE), base)
        for at in made.at():
            w = site_weight(base, at.site)
            left = w - products(made)[at.site.name]
            s = torch.linalg.svdvals(w.double())
            rest = s[rank:] if isinstance(start, PiSSAStart) else s[: len(s) - rank]
            assert float(left.norm()) == pytest.approx(float(rest.norm()), abs=1e-4)
            if rank == min(w.shape):
                bed.close(left, torch.zeros_like(left), 1e-5)


@pytest.mark.parametrize("mode", ["previewed", "preserved"])
def test_corda_takes_the_weight_apart_and_puts_it_together(mode: str) -> None:
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(7, 6, generator=rng, dtype=torch.float64)
    x = torch.randn(6, 50, generator=rng, dtype=torch.float64) * torch.arange(1, 7)[:, None]
    c = damped(x @ x.T)
    b, a = factors_of(w, 6, True, c)
    bed.close(b @ a, w, 1e-10)
    b, a = factors_of(w, 2, mode == "previewed", c)
    rest, other = factors_of(w, 4, mode != "previewed", c)
    bed.close(b @ a + rest @ other, w, 1e-10)
    if mode == "previewed":  # the projection on the top left singular vectors of W C
        u = torch.linalg.svd(w @ c).U[:, :2]
        bed.close(b @ a, u @ u.T @ w, 1e-10)


def test_corda_without_a_context_is_pissa() -> None:
    w = torch.randn(7, 6, dtype=torch.float64)
    one = torch.eye(6, dtype=torch.float64)
    for largest in (True, False):
        b, a = factors_of(w, 3, largest)
        b1, a1 = factors_of(w, 3, largest, damped(one))
        bed.close(b1 @ a1, b @ a, 1e-10)


def test_corda_loses_least_where_the_inputs_are() -> None:
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        w = torch.randn(9, 8, generator=rng, dtype=torch.float64)
        root = torch.randn(8, 8, generator=rng, dtype=torch.float64)
        c = root @ root.T + 0.01 * torch.eye(8)
        for rank in (1, 3, 6):
            (b, a), (b0, a0) = factors_of(w, rank, True, c), factors_of(w, rank, True)
            assert ((w - b @ a) @ c).norm() < ((w - b0 @ a0) @ c).norm()


def test_too_few_tokens_are_damped_and_nothing_at_all_is_refused() -> None:
    x = torch.randn(20, 3, dtype=torch.float64)
    moment = x @ x.T
    c = damped(moment)
    added = (c - moment / moment.diagonal().mean()).diagonal()
    assert torch.allclose(added, torch.full_like(added, 0.01))
    assert float((c @ torch.linalg.inv(c) - torch.eye(20)).norm()) < 0.05
    with pytest.raises(OptionError, match="can't be inverted"):
        damped(torch.zeros(4, 4, dtype=torch.float64))


def test_what_is_no_pair_of_factors_is_refused_before_training() -> None:
    load_all()
    base = bed.base("bert")
    with pytest.raises(OptionError, match="low-rank factors A and B"):
        Adaptation.new(make("prompt_tuning", {"start": "pissa"}), base)
    with pytest.raises(OptionError, match="Raise alpha"):
        Adaptation.new(LoRA(alpha=0.0, start=PiSSAStart()), base)
    with pytest.raises(OptionError, match="needs statistics"):
        Adaptation.new(CorDA(rank=2), base)
    with pytest.raises(OptionError, match="above min"):
        Adaptation.new(SoMA(rank=33), base)


def test_soma_leaves_the_first_third_of_the_blocks_alone() -> None:
    base = bed.base("bert")
    for share, first in ((1 / 3, 1), (0.0, 0), (0.7, 2)):
        made = Adaptation.new(SoMA(rank=2, frozen=share), base)
        assert {a.site.layer for a in made.at()} == set(range(first, 3))


def test_the_decay_falls_by_a_cosine_from_the_first_step_to_the_last() -> None:
    a = torch.nn.Parameter(torch.ones(2))

    class Run:
        def rates(self, name):
            return (0.1, 0.05) if name == "a" else (0.1, 0.0)

    optimiser = adamw({"a": a, "head": torch.nn.Parameter(torch.ones(1))}, Run(), last_decay=1e-5)
    found = []
    for step in range(11):
        schedule(optimiser, step, 11, 0.0)
        found.append([g["weight_decay"] for g in optimiser.param_groups])
    assert [f[1] for f in found] == [0.0] * 11 and DECAYS not in optimiser.param_groups[1]
    assert found[0][0] == 0.05 and found[10][0] == pytest.approx(1e-5)
    assert found[5][0] == pytest.approx((0.05 + 1e-5) / 2)
    assert [f[0] for f in found] == sorted((f[0] for f in found), reverse=True)
    assert cosine(0, 1) == 1.0


def test_preserved_takes_the_other_end_and_its_rows_from_elsewhere(tmp_path) -> None:
    import luthier as lt
    from luthier.train.beginning import statistics_for

    for name, words in (("task", ["good", "bad", "fine"]), ("other", ["one", "two", "three"])):
        rows = [f"{w} {w} thing {i},{'x' if i % 2 else 'y'}" for i, w in enumerate(words * 5)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    data = lt.data(tmp_path / "task.csv", input="text", label="label", split=(0.6, 0.2, 0.2), seed=0)
    model = lt.load("builtin:bert", device="cpu")
    found = [
        statistics_for(CorDA(rank=2, start=CorDAStart(data=d), targets="attention.query"), model, data, 4)
        for d in ("", str(tmp_path / "other.csv"))
    ]
    assert all(set(v) == {"input_moment"} for f in found for v in f.values())
    site = next(iter(found[0]))
    assert not torch.allclose(found[0][site]["input_moment"], found[1][site]["input_moment"])
