"""SPT (S147): the task's gradients say what is tuned and how, within a budget; all else keeps its bits."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.sizing import count, sized
from luthier.methods.sparse.entries import SparseEntries
from luthier.methods.sparse.sensitivity_tuning import SensitivityTuning
from luthier.train.run import Recipe, Run
from tests.conformance.cells import Cell
from tests.host import bed


def run_of(part: SensitivityTuning, architecture: str = "bert") -> Run:
    return Cell("sensitivity_tuning", architecture, part).run()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "vit"])
def test_sensitivity_is_the_sum_of_the_base_s_own_squared_gradients(architecture):
    part = SensitivityTuning(size=2, batches=3)
    run = run_of(part, architecture)
    found = part.sensitivity(run)
    base = Cell("sensitivity_tuning", architecture, part).base()
    plain = Run(Adapted(base), [], run.batches, run.objective, Recipe(1))
    own = {n: p.requires_grad_(True) for n, p in base.named_parameters() if n in found}
    assert own.keys() == found.keys()
    want = {n: torch.zeros_like(p) for n, p in own.items()}
    for i in range(3):
        loss = plain.objective.loss(plain, run.batches.whole("train", i))
        for n, g in zip(own, torch.autograd.grad(loss, list(own.values()), allow_unused=True), strict=True):
            if g is not None:
                want[n] += g.square()
    largest = max(float(w.max()) for w in want.values())
    assert largest > 0
    for n, s in found.items():
        assert (s - want[n]).abs().max() <= 1e-6 * largest, n


@pytest.mark.parametrize("numbers", [120, 900, 1500])
def test_the_budget_is_kept_and_used(numbers):
    run = run_of(SensitivityTuning(size=2, numbers=numbers, batches=2))
    run.enter()
    assert run.main.counts()["method"] == numbers
    forms = {at.layout["size"] for at in run.main.at(0)}
    assert forms == ({0} if numbers == 120 else {0, 2})
    taken = {at.site.path for at in run.main.at(0) if at.layout["size"]}
    assert not any("weight" in at.values for at in run.main.at(1) if at.site.path in taken)


def test_what_is_not_marked_keeps_its_bits_under_weight_decay_and_the_merged_model_is_the_same():
    run = run_of(SensitivityTuning(size=2, numbers=900, batches=2))
    run.recipe = Recipe(6, decay=0.5, rate=1e-2)
    run.steps = [6]
    before = {n: p.clone() for n, p in run.adapted.base.named_parameters()}
    run.go()
    x = bed.batch("bert")
    with torch.no_grad():
        apart = bed.result(run.adapted, x)
        matrices = {f"{at.site.path}.weight" for at in run.main.at(0) if at.layout["size"]}
        entries = {f"{at.site.path}.{n}": n for at in run.main.at(1) for n in at.layout["of"]}
        marks = {
            f"{at.site.path}.{n}": at.values.get(f"{n}_at", None)
            for at in run.main.at(1)
            for n in at.layout["of"]
        }
        run.adapted.merge("main")
        bed.close(bed.result(run.adapted, x), apart, 1e-4)
    changed = 0
    for name, p in run.adapted.base.named_parameters():
        same = p.detach().eq(before[name]).flatten()
        if name in entries:
            if marks[name] is not None:
                changed += int((~same[marks[name]]).sum())
                same[marks[name]] = True
                assert same.all(), name
        elif name in matrices:
            assert not same.any(), name
        else:
            assert same.all(), name
    assert changed and matrices


def test_random_scores_mark_as_many_elsewhere():
    layouts = []
    for score in ("gradients", "random"):
        run = run_of(SensitivityTuning(size=2, numbers=900, batches=2, score=score))
        run.enter()
        layouts.append(run.main.layouts())
        assert run.main.counts()["method"] == 900
    assert layouts[0] != layouts[1]


def test_a_budget_is_given_to_it_whole_or_as_much_as_there_is():
    base = bed.base("bert")
    found = sized(SensitivityTuning(size=2), base, 1234)
    assert found == SensitivityTuning(size=2, numbers=1234) and count(found, base) == 1234
    run = run_of(SensitivityTuning(size=2, numbers=10**6, batches=2))
    run.enter()
    assert count(run.main.method, base) == run.main.counts()["method"] < 10**6


def test_lora_stands_at_targets_alone():
    run = run_of(SensitivityTuning(size=2, targets="norm*", batches=1))
    with pytest.raises(OptionError, match="Choose matrices among the targets"):
        run.enter()


def test_layouts_that_are_not_of_the_model_are_refused():
    base = bed.base("bert")
    part = SparseEntries(count=3)
    site = Adaptation.new(part, base).at()[0].site
    for layout in (
        {"marked": 3, "of": {"gone": 3}},
        {"marked": 10**9, "of": {"weight": 10**9}},
        {"marked": 4, "of": {"weight": 3}},
        {"marked": -1, "of": {"weight": -1}},
    ):
        with pytest.raises(OptionError, match="not of its parameters"):
            part.tensors(site, layout)
