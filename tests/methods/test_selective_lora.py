"""Selective LoRA (S114): gates that are exactly open or shut, learn through the step, and leave nothing behind when they close."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.low_rank.selective_lora import SelectiveLoRA, gate
from luthier.train.run import Run
from tests.conformance.cells import Cell
from tests.host import bed


def scored(made: Adaptation, scores: list[float]) -> Adaptation:
    with torch.no_grad():
        for at, s in zip(made.at(), scores, strict=False):
            at.values["s"].fill_(s)
    return made


def test_a_gate_is_exactly_one_or_nothing_and_its_gradient_is_the_scores_own():
    for score, value in ((0.15, 1.0), (0.1, 1.0), (0.0999, 0.0), (-3.0, 0.0)):
        s = torch.tensor([score], requires_grad=True)
        g = gate(s, 0.1)
        assert g.item() == value
        g.backward()
        assert s.grad is not None and s.grad.item() == 1.0


@torch.no_grad()
def test_a_closed_update_contributes_nothing():
    base, x = bed.base("bert"), bed.batch("bert")
    model = Adapted(base)
    made = bed.shaken(Adaptation.new(SelectiveLoRA(rank=2), base))
    sites = len(made.at())
    scored(made, [0.0] * sites)
    with model.using():
        want = bed.result(model, x)
    with model.attached(made):
        assert torch.equal(bed.result(model, x), want)
    scored(made, [0.5] + [0.0] * (sites - 1))
    with model.attached(made):
        some = bed.result(model, x)
    assert not torch.allclose(some, want, atol=1e-3)
    alone = bed.shaken(Adaptation.new(SelectiveLoRA(rank=2, targets=made.at()[0].site.name), base))
    for name, value in made.at()[0].values.items():
        alone.at()[0].values[name].copy_(value)
    with model.attached(alone):
        bed.close(bed.result(model, x), some, 1e-6)


def run_of(part: SelectiveLoRA) -> Run:
    return Cell("selective_lora", "bert", part).run()


def test_what_is_closed_is_dropped_and_the_rest_stays_as_it_was():
    run = run_of(SelectiveLoRA(rank=2, choose=0.5))
    run.enter()
    bed.shaken(run.main)
    sites = len(run.main.at())
    scored(run.main, [0.5] + [0.0] * (sites - 2) + [0.3])
    x = bed.batch("bert")
    with torch.no_grad():
        before = bed.result(run.adapted, x)
        run.main.parts[0].part.close(run)
        bed.close(bed.result(run.adapted, x), before, 1e-6)
    sizes = [sum(p.numel() for p in at.values.values()) for at in run.main.at()]
    assert sizes[0] and sizes[-1] and not any(sizes[1:-1])
    assert not any("s" in at.values for at in run.main.at())


def test_a_share_of_the_sites_stays_whatever_the_threshold_says():
    run = run_of(SelectiveLoRA(rank=2, active=0.25))
    run.enter()
    sites = len(run.main.at())
    scored(run.main, [0.2 + 0.01 * i for i in range(sites)])
    count = max(1, round(0.25 * sites))
    kept = run.main.parts[0].part.stays(run)
    assert kept == {at.site.name for at in run.main.at()[-count:]}


def test_the_penalty_sets_in_after_the_free_steps():
    part = SelectiveLoRA(rank=2, free=0.5, penalty=2.0)
    run = run_of(part)
    run.enter()
    batch = run.batch()
    found = []
    for step in (0, run.steps[0] - 1):
        run.step = step
        with torch.no_grad():
            found.append(float(part.loss(run, batch)))
    assert found[1] - found[0] == pytest.approx(2.0 * 0.15, abs=1e-5)


def test_a_whole_plan_closes_by_itself_and_says_when_nothing_is_left():
    run = run_of(SelectiveLoRA(rank=2, choose=0.5, active=0.5)).go()
    assert 0 < sum(at.layout["rank"] > 0 for at in run.main.at()) < len(run.main.at())
    run = run_of(SelectiveLoRA(rank=2))
    run.enter()
    scored(run.main, [0.0] * len(run.main.at()))
    with pytest.raises(OptionError, match="no gate is open"):
        run.main.parts[0].part.close(run)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"initial": 0.05}, "begin closed"), ({"active": 0.5, "choose": 1}, "Set choose below 1")],
)
def test_options_that_learn_nothing_are_refused(given, says):
    with pytest.raises(OptionError, match=says):
        Adaptation.new(SelectiveLoRA(**given), bed.base("bert"))
