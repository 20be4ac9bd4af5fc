"""rsLoRA, LoRA+, DoRA and Chain of LoRA (S097): formulas with numbers worked out another way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.adaptation import site_weight
from luthier.host.merge import merged_copy
from luthier.methods.low_rank.chain import ChainOfLoRA
from luthier.methods.low_rank.dora import DoRA
from luthier.methods.low_rank.lora_plus import LoRAPlus
from luthier.methods.low_rank.rslora import RsLoRA
from luthier.starts.singular import PiSSAStart
from tests.host import bed


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    for rank in (4, 16):
        made = bed.shaken(Adaptation.new(RsLoRA(rank=rank, alpha=6.0), bed.base("bert")))
        at = made.at()[0]
        want = 6.0 / rank**0.5 * at.values["B"] @ at.values["A"]
        assert torch.allclose(at.part.delta(None, at.t(None)), want, atol=1e-5)


def test_lora_plus_gives_b_a_rate_of_its_own() -> None:
    base = bed.base("bert")
    model = Adapted(base)
    model.attach("main", Adaptation.new(LoRAPlus(rank=2, ratio=5.0), base))
    named = {f"main.{k}": v for k, v in model.adaptations["main"].trainable().items()} | {
        "main.head.b": torch.nn.Parameter(torch.ones(1))
    }
    (phase,) = LoRAPlus(ratio=5.0).phases()
    optimiser = phase.optimiser(named, SimpleNamespace(rates=lambda name: (2e-3, 0.0)))
    rate = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    for name, p in named.items():
        assert rate[id(p)] == pytest.approx(1e-2 if name.endswith("values.B") else 2e-3), name


@torch.no_grad()
def test_dora_changes_norms_and_directions_apart() -> None:
    base = bed.base("bert")
    made = bed.shaken(Adaptation.new(DoRA(rank=3, alpha=6.0), base))
    merged = merged_copy(base, made)
    for at in made.at():
        w, t = site_weight(base, at.site), at.values
        v = w + 2.0 * t["B"] @ t["A"]
        got = site_weight(merged, at.site)
        assert torch.allclose(got, t["m"][:, None] * torch.nn.functional.normalize(v, dim=1), atol=1e-5)
        assert torch.allclose(got.norm(dim=1), t["m"].abs(), atol=1e-5)


def test_the_norm_of_dora_is_constant_in_the_backward_pass() -> None:
    base = bed.base("bert")
    made = bed.shaken(Adaptation.new(DoRA(rank=3), base))
    at = made.at()[0]
    w, m, a, b = site_weight(base, at.site), *(at.values[k].detach().clone().requires_grad_() for k in "mAB")
    target = torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    v = w + 16 / 3 * b @ a
    (m / v.detach().norm(dim=1))[:, None].mul(v).mul(target).sum().backward()
    (at.part.delta(w, at.t(None)) * target).sum().backward()
    for name, want in (("m", m), ("A", a), ("B", b)):
        assert torch.allclose(at.values[name].grad, want.grad, rtol=1e-4, atol=1e-5)


def chained(name: str, **options) -> tuple[Adapted, SimpleNamespace]:
    base = bed.base(name)
    model = Adapted(base)
    model.attach("main", Adaptation.new(ChainOfLoRA(rank=2, **options), base))
    return model, SimpleNamespace(main=model.adaptations["main"], rng=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_new_link_changes_nothing_and_adds_its_rank(name: str) -> None:
    model, run = chained(name, links=3)
    part, x = run.main.method, bed.batch(name)
    trained = run.main.counts()["method"]
    for link in range(3):
        if link:
            with torch.no_grad():
                before = bed.result(model, x)
                firsts = {a.site.name: a.values["A"].detach().clone() for a in run.main.at()}
                part.link(run)
                bed.close(bed.result(model, x), before, 1e-5)
            for at in run.main.at():
                assert not at.values["B"].any() and not torch.equal(at.values["A"], firsts[at.site.name])
                assert not at.values["past_A"].requires_grad
        assert run.main.counts()["method"] == trained
        bed.shaken(run.main, seed=link)
        for at in run.main.at():
            assert torch.linalg.matrix_rank(part.delta(None, at.t(None)).double(), rtol=1e-6) == 2 * (
                link + 1
            )


def test_a_whole_run_of_links_trains_and_resets_the_optimiser() -> None:
    from tests.conformance.cells import Cell

    run = Cell("chain_of_lora", "bert", ChainOfLoRA(rank=2, links=3)).run()
    seen = []
    real = run.reset_optimiser
    run.reset_optimiser = lambda *a: (
        real(*a),
        seen.append((run.index, len(run.optimiser.state), sum(p.numel() for p in run.named.values()))),
    )
    run.go()
    assert (
        [s[0] for s in seen] == [0, 1, 2] and {s[1] for s in seen} == {0} and len({s[2] for s in seen}) == 1
    )
    assert {a.layout["links"] for a in run.main.at()} == {2}


def test_a_chain_from_components_is_refused() -> None:
    with pytest.raises(OptionError, match="start=zero or start=eva"):
        Adaptation.new(ChainOfLoRA(start=PiSSAStart()), bed.base("bert"))
