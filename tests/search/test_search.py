"""Searches from data to an adaptation, on the embedded vision transformer and Llama."""

import json
from dataclasses import replace

import pytest
import torch

import luthier as lt
import luthier.search.search as module
from luthier.errors import DataError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.search.evolution import Evolution
from luthier.search.search import search
from luthier.search.supernet import Supernet, choose
from luthier.train.fit import fit
from luthier.train.fitted import load_fitted

QUICK = {
    "evolution": Evolution(2, 6, 2, 3, 2),
    "steps": 6,
    "retrain_steps": 3,
    "batch_size": 8,
    "progress": False,
}


@pytest.fixture(scope="module")
def vit():
    return lt.load("builtin:vit", device="cpu")


@pytest.fixture(scope="module")
def digits():
    return lt.data("builtin:digits").limit(train=40, validation=24, test=16)


def same(a, b):
    mine, theirs = a.adaptation.state(), b.adaptation.state()
    return set(mine) == set(theirs) and all(torch.equal(v, theirs[k]) for k, v in mine.items())


def test_glora_keeps_the_supernets_weights_and_its_score(vit, digits, tmp_path):
    out = tmp_path / "s"
    found = search(vit, digits, lt.methods.GLoRA(rank=2), budget="params=1%", out=out, **QUICK)
    assert found.parameters == found.fitted.adaptation.counts()["method"] <= found.allowed
    assert found.allowed == sum(p.numel() for p in vit.base.parameters()) // 100
    assert found.fitted.score(digits.validation)["accuracy"] == pytest.approx(found.validation["accuracy"])
    assert found.fitted.adaptation.layouts()["0"] == found.layouts["0"]
    told = json.loads((out / "search.json").read_text())
    assert told["winner"]["parameters"] == found.parameters and not told["winner"]["retrained"]
    assert len((out / "candidates.jsonl").read_text().splitlines()) == len(found.candidates) == 12
    assert same(load_fitted(out, vit), found.fitted)


def test_noahs_winner_is_trained_anew_and_a_search_resumes(vit, digits, tmp_path, monkeypatch):
    out, method = tmp_path / "s", lt.methods.NOAH(size=4)
    whole = search(vit, digits, method, budget="params=2%", **QUICK)
    made = []

    class Stopped(Exception):
        pass

    def stopping(space, allowed, score, how, *, known, tell):
        def limited(genome):
            if len(made) == 7:
                raise Stopped
            made.append(genome)
            return score(genome)

        return evolve(space, allowed, limited, how, known=known, tell=tell)

    evolve = module.evolve
    monkeypatch.setattr(module, "evolve", stopping)
    with pytest.raises(Stopped):
        search(vit, digits, method, budget="params=2%", out=out, **QUICK)
    assert len((out / "candidates.jsonl").read_text().splitlines()) == 7
    monkeypatch.setattr(module, "evolve", evolve)
    resumed = search(vit, digits, method, budget="params=2%", out=out, **QUICK)
    assert [c.genome for c in resumed.candidates] == [c.genome for c in whole.candidates]
    assert resumed.layouts == whole.layouts and same(resumed.fitted, whole.fitted)
    assert resumed.parameters <= resumed.allowed
    with pytest.raises(OptionError, match="holds a search with another seed"):
        search(vit, digits, method, budget="params=2%", out=out, seed=1, **QUICK)


def test_the_test_rows_are_not_looked_at(vit, digits):
    blind = replace(digits, test=None)
    method = lt.methods.GLoRA(rank=2, a="none")
    a, b = (search(vit, d, method, budget="params=1%", **QUICK) for d in (digits, blind))
    assert a.layouts == b.layouts and same(a.fitted, b.fitted)
    other = replace(digits, train=digits.validation, validation=digits.train)
    c = search(vit, other, method, budget="params=1%", **QUICK)
    assert not same(a.fitted, c.fitted)


def test_a_fit_goes_on_with_the_winners_layout(vit, digits):
    found = search(vit, digits, lt.methods.GLoRA(rank=2), budget="params=1%", **QUICK)
    on = fit(vit, digits, lt.methods.GLoRA(rank=2), after=found.fitted, steps=2, batch_size=8, progress=False)
    assert on.adaptation.layouts() == found.fitted.adaptation.layouts()


def test_a_step_trains_only_what_its_layout_reads(vit):
    """What a small layout does not read has no gradient: other layouts share the rest."""
    made = Adaptation.new(Supernet(of=lt.methods.GLoRA(rank=3)), vit.base)
    site = made.at()[0].site.name
    forms = {"A": "vector", "B": "lora", "C": "none", "D": "scalar", "E": "none", "rank": 3}
    none = {a.site.name: {**dict.fromkeys("ABCDE", "none"), "rank": 3} for a in made.at()}
    choose(made, {"0": {**none, site: forms}})
    adapted = Adapted(vit.base)
    x = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    with adapted.attached(made, "main"):
        made.requires_grad_(True)
        adapted(x).hidden.pow(2).sum().backward()
    values = made.at()[0].values
    assert values["A1"].grad[:, 0].abs().min() > 0 and not values["A1"].grad[:, 1:].any()
    assert values["D"].grad[0] != 0 and not values["D"].grad[1:].any()
    assert values["B1"].grad.abs().min() > 0
    assert all(values[k].grad is None for k in ("A2", "C1", "C2", "E"))
    assert all(v.grad is None for a in made.at()[1:] for v in a.values.values())


def test_text_that_is_written_is_searched_by_its_loss():
    model, data = (
        lt.load("builtin:llama", device="cpu"),
        lt.data("builtin:order-a").limit(train=16, validation=8),
    )
    found = search(model, data, lt.methods.GLoRA(rank=1), budget="params=0.5%", **QUICK)
    assert set(found.validation) == {"loss"} and found.validation["loss"] > 0
    best = max(c.score for c in found.candidates)
    assert found.validation["loss"] == -best


def test_what_cannot_be_searched_is_refused(vit, digits):
    with pytest.raises(OptionError, match="says no space"):
        search(vit, digits, "lora", budget="params=1%", **QUICK)
    with pytest.raises(DataError, match="validation rows"):
        search(vit, replace(digits, validation=None), "glora", budget="params=1%", **QUICK)
    with pytest.raises(OptionError, match="the smallest choice"):
        search(vit, digits, "noah", budget="params=10", **QUICK)
    for budget, message in (
        ("minutes=3", "for parameters, not for minutes"),
        ("", "says nothing of parameters"),
    ):
        with pytest.raises(OptionError, match=message):
            search(vit, digits, "glora", budget=budget, **QUICK)
