"""AdaLoRA: a cubic budget over all sites' triplets, scores by sensitivity and its uncertainty, and a file without what was pruned."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.sizing import count, sized
from luthier.methods.low_rank.adalora import AdaLoRA, apart, budget, smoothed, triplets
from luthier.selection.strongest import strongest
from luthier.starts.eva import EVAStart
from luthier.starts.singular import PiSSAStart
from luthier.train.run import Run
from tests.conformance.cells import Cell
from tests.host import bed


def run_of(part: AdaLoRA) -> Run:
    return Cell("adalora", "bert", part).run()


def test_the_budget_stays_falls_by_a_cubic_and_ends_at_the_target():
    assert [budget(t, 120, 40, 10, 50) for t in (0, 9, 10)] == [120, 120, 120]
    assert budget(30, 120, 40, 10, 50) == 40 + 80 // 8
    assert budget(50, 120, 40, 10, 50) == budget(60, 120, 40, 10, 50) == 40


def test_the_orthogonality_term_is_zero_for_orthonormal_factors_alone():
    rng = torch.Generator().manual_seed(0)
    p = torch.linalg.qr(torch.randn(7, 3, generator=rng, dtype=torch.float64)).Q
    q = torch.linalg.qr(torch.randn(5, 3, generator=rng, dtype=torch.float64)).Q.T
    assert apart(p, q) < 1e-24
    assert torch.isclose(apart(2 * p, q), torch.tensor(27.0, dtype=torch.float64))  # 3 entries of (4 - 1)^2
    assert torch.isclose(apart(p, 0 * q), torch.tensor(3.0, dtype=torch.float64))


def test_scores_of_triplets_add_an_entry_a_column_and_a_row():
    of_l, of_b, of_a = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 0.0], [5.0, 4.0]]), torch.eye(2)
    assert triplets(of_l, of_b, of_a).tolist() == [1 + 4 + 0.5, 2 + 2 + 0.5]
    mean, spread = smoothed(torch.tensor(4.0), torch.tensor(2.0), torch.tensor(1.0), 0.5, 0.25)
    assert (mean, spread) == (3.0, 0.25 + 0.75 * 1.0)


def test_the_strongest_stay_whatever_their_site_and_within_what_they_cost():
    scores = {"a": torch.tensor([0.1, 0.9]), "b": torch.tensor([0.5, 0.4, 0.2])}
    assert strongest(scores, 3) == {"a": [1], "b": [0, 1]}
    assert strongest(scores, 7, {"a": 5, "b": 2}) == {"a": [1], "b": [0]}
    assert strongest(scores, 4, {"a": 5, "b": 2}) == {"a": [], "b": [0, 1]}
    assert strongest({"a": torch.zeros(2), "b": torch.zeros(2)}, 3) == {"a": [0, 1], "b": [0]}


@torch.no_grad()
def test_the_change_is_the_product_of_three_factors_and_merges():
    base, x = bed.base("bert"), bed.batch("bert")
    model = Adapted(base)
    made = bed.shaken(Adaptation.new(AdaLoRA(rank=2, initial=2), base))
    at = made.at()[0]
    weight = base.get_submodule(at.site.path).weight
    t = at.values
    want = 16 / 2 * t["B"] @ torch.diag(t["l"]) @ t["A"]
    assert t["l"].shape == (4,) and torch.allclose(at.part.delta(weight, at.t(None)), want, atol=1e-5)
    model.attach("main", made)
    beside = bed.result(model, x)
    model.merge("main")
    bed.close(bed.result(model, x), beside, 1e-4)


def test_sensitivities_are_those_of_the_steps_gradient():
    part = AdaLoRA(rank=2, interval=5)
    run = run_of(part)
    run.enter()
    run.gradient_step()
    run.step = 1
    part.observe(run)
    at = run.main.at()[0]
    now = (at.values["B"].detach() * at.values["B"].grad).abs()
    assert now.max() > 0
    assert torch.allclose(run.extra[f"{at.key}/B/mean"], 0.15 * now)
    assert torch.allclose(run.extra[f"{at.key}/B/spread"], 0.15 * (now - 0.15 * now))


def test_what_the_budget_closes_is_zero_and_dropping_it_changes_nothing():
    part = AdaLoRA(rank=2, interval=1, final=0.5)
    run = run_of(part)
    run.enter()
    steps = run.steps[0]
    run.gradient_step()
    run.step = steps
    part.observe(run)
    sites = run.main.at()
    kept = part.stays(run, steps)
    assert sum(map(len, kept.values())) == 2 * len(sites)
    for at in sites:
        closed = sorted(set(range(at.layout["rank"])) - set(kept[at.site.name]))
        assert at.values["l"][closed].eq(0).all() and at.values["l"][kept[at.site.name]].ne(0).all()
    x = bed.batch("bert")
    with torch.no_grad():
        before = bed.result(run.adapted, x)
        part.drop(run)
        bed.close(bed.result(run.adapted, x), before, 1e-5)
    assert {at.site.name: at.layout["rank"] for at in run.main.at()} == {n: len(k) for n, k in kept.items()}
    assert run.main.counts()["method"] == sum(
        len(kept[a.site.name]) * (a.site.in_features + a.site.out_features + 1) for a in sites
    )


def test_a_closed_triplet_may_come_back():
    part = AdaLoRA(rank=2)
    run = run_of(part)
    run.enter()
    run.gradient_step()
    run.step = 1
    part.observe(run)
    part.close(run, {at.site.name: [] for at in run.main.at()})
    assert all(at.values["l"].eq(0).all() for at in run.main.at())
    run.gradient_step()
    assert all(at.values["l"].ne(0).any() for at in run.main.at())


def test_a_whole_plan_ends_within_numbers():
    for numbers in (700, 2000):
        run = run_of(AdaLoRA(rank=2, numbers=numbers)).go()
        trained = run.main.counts()["method"]
        assert numbers - 130 < trained <= numbers  # a triplet of 32 x 64 costs 97, one of 32 x 32 costs 65


def test_a_budget_sets_the_target_and_counts_what_stays():
    base = bed.base("bert")
    found = sized(AdaLoRA(), base, 5000)
    assert isinstance(found, AdaLoRA) and found.numbers == 5000
    assert count(AdaLoRA(rank=found.rank), base) <= 5000 < count(AdaLoRA(rank=found.rank + 1), base)
    first = sum(p.numel() for p in Adaptation.new(found, base).trainable().values())
    assert count(found, base) == 5000 < first
    assert sized(AdaLoRA(numbers=10), base, 5000) == found


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"start": EVAStart()}, "Choose normal or uniform"),
        ({"start": PiSSAStart()}, "Choose normal or uniform"),
        ({"optimiser": "lora_pro"}, "Choose optimiser=adamw"),
        ({"rank": 40}, "Choose a smaller rank"),
    ],
)
def test_what_does_not_fit_three_factors_is_refused(given, says):
    with pytest.raises(OptionError, match=says):
        AdaLoRA(**given).check([at.site for at in Adaptation.new(AdaLoRA(), bed.base("bert")).at()])


def test_too_few_numbers_for_one_triplet_are_refused():
    run = run_of(AdaLoRA(rank=2, numbers=10))
    with pytest.raises(OptionError, match="less than the cheapest triplet"):
        run.go()
