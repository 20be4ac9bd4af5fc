"""Lyapunov exponents, divergence of precisions and the worth of demonstrations, against what is known of each."""

from __future__ import annotations

import math

import pytest
import torch

import luthier as lt
from luthier.errors import OptionError, SiteError
from luthier.host import Adaptation, Adapted
from luthier.instruments import shots
from luthier.instruments.divergence import Divergence, losses, precision_divergence
from luthier.instruments.lyapunov import exponents, scan_exponents
from luthier.methods.low_rank.lora import LoRA
from luthier.models.scan import scanned
from tests.host import bed


def test_the_logistic_map_at_4_has_the_exponent_ln_2():
    found = exponents(lambda x, t: 4 * x * (1 - x), torch.tensor(0.3, dtype=torch.float64), 3000)
    assert found.shape == (1,) and abs(found.item() / math.log(2) - 1) < 0.01


def test_a_linear_map_has_the_logarithms_of_its_eigenvalues():
    basis = torch.tensor([[1.0, 0.5, 0.1], [0.0, 1.0, 0.7], [0.3, 0.0, 1.0]], dtype=torch.float64)
    map = basis @ torch.diag(torch.tensor([1.5, 0.8, -0.3], dtype=torch.float64)) @ torch.linalg.inv(basis)
    found = exponents(lambda x, t: map @ x, torch.ones(3, dtype=torch.float64), 1000)
    bed.close(found, torch.tensor([1.5, 0.8, 0.3], dtype=torch.float64).log(), 2e-3)
    top = exponents(lambda x, t: map @ x, torch.ones(3, dtype=torch.float64), 1000, count=1)
    bed.close(top, found[:1], 1e-9)
    for wrong in ({"steps": 0}, {"steps": 5, "count": 4}):
        with pytest.raises(OptionError):
            exponents(lambda x, t: x, torch.ones(3), **wrong)


@pytest.mark.parametrize("mixers", ["transformers", "ours"])
def test_a_scans_exponents_are_those_of_its_state_map(mixers):
    base, ids = bed.base("mamba").double(), torch.randint(2, 40, (1, 30))
    if mixers == "ours":
        scanned(base)
    found = scan_exponents(base, {"input_ids": ids})
    assert len(found) == 3 and all(v.shape == (64, 4) and v.max() <= 0 for v in found.values())
    from luthier.instruments.lyapunov import steps_of

    with steps_of(base) as seen, torch.no_grad():
        base(ids)
    (steps, A), want = next(iter(seen.values())), next(iter(found.values()))
    held = exponents(
        lambda h, t: torch.exp(steps[0, t, :, None] * A) * h + 0.1, torch.zeros(64, 4).double(), 30
    )
    bed.close(held, want.flatten().sort(descending=True).values, 1e-12)
    assert not any(m._forward_hooks for m in base.modules())


def test_padding_does_not_count_and_what_is_attached_does():
    base, batch = bed.base("mamba"), bed.batch("mamba")
    alone = scan_exponents(base, {k: v[1:2, 3:] for k, v in batch.items()})
    padded = scan_exponents(base, {k: v[1:2] for k, v in batch.items()})
    for a, b in zip(alone.values(), padded.values(), strict=True):
        bed.close(a, b, 1e-5)
    scanned(base)
    adapted = Adapted(base)
    adapted.attach("main", bed.shaken(Adaptation.new(LoRA(targets="ssm.dt", rank=1), base)))
    moved = scan_exponents(adapted, batch)
    with adapted.using():
        still = scan_exponents(adapted, batch)
    assert all(not torch.allclose(moved[n], still[n]) for n in still)
    with pytest.raises(SiteError, match="selective scan"):
        scan_exponents(bed.base("llama"), bed.batch("llama"))


def test_the_preset_is_the_projections_that_every_mixer_calls():
    found = Adaptation.new(LoRA(rank=1, targets="ssm.projections[1:]"), bed.base("mamba")).at()
    names = {a.site.name.rpartition(".")[2] for a in found}
    assert names == {"in_proj", "x_proj", "out_proj"} and {a.site.layer for a in found} == {1, 2}
    with pytest.raises(SiteError, match=r"No site matches 'ssm\.projections'"):
        Adaptation.new(LoRA(targets="ssm.projections"), bed.base("llama"))


def test_divergence_is_the_mean_gap_of_two_paths():
    assert Divergence((1.0, 2.0), (1.5, 1.0)).mean == 0.75
    assert Divergence((1.0, 2.0), (1.5, 1.0)).relative == 0.5
    assert Divergence((1.0,), (math.nan,)).mean == math.inf


@pytest.fixture(scope="module")
def llama():
    return lt.load("builtin:llama", device="cpu"), lt.data("builtin:verdicts")


def test_the_same_seed_in_the_same_precision_does_not_diverge(llama):
    model, data = llama
    small = data.limit(train=32, validation=8)
    options = {"steps": 4, "batch_size": 4, "seed": 1}
    full = losses(model, small, lt.methods.LoRA(rank=2), **options)
    found = precision_divergence(model, small, lt.methods.LoRA(rank=2), **options)
    assert found.full == full and len(found.lower) == 4 and 0 < found.mean < 0.5
    with pytest.raises(OptionError, match="precision"):
        precision_divergence(model, small, lt.methods.LoRA(rank=2), precision="bf16")


def test_demonstrations_stand_in_front_with_their_labels(llama):
    _, data = llama
    shown = shots.demonstrations(data, 5, 6, seed=0)
    labels = [[int(data.train.targets[i]) for i in each] for each in shown]
    assert all(sorted(each[:3]) == sorted(each[3:]) == [0, 1, 2] for each in labels)
    assert shown == shots.demonstrations(data, 5, 6, seed=0) != shots.demonstrations(data, 5, 6, seed=1)
    text = shots.prompt("Is it?", shown[0][:2], data, "\n")
    first = data.train.inputs[shown[0][0]]
    assert text.startswith(f"{first}\n{data.task.labels[labels[0][0]]}\n\n") and text.endswith("\n\nIs it?")


def test_accuracies_are_of_all_asked_numbers_and_the_gain_is_relative(llama):
    model, data = llama
    found = shots.k_shot(model, data, (1, 2), rows=8)
    assert set(found.accuracy) == {0, 1, 2} and found.rows == 8
    assert all(0 <= v <= 1 and (v * 8).is_integer() for v in found.accuracy.values())
    good, weak = shots.Shots({0: 0.3, 4: 0.9}, 10), shots.Shots({0: 0.4, 4: 0.55}, 10)
    assert good.gain(4) == pytest.approx(0.6) and weak.relative_gain(good, 4) == pytest.approx(0.25)
    with pytest.raises(OptionError, match="nothing to be a share of"):
        good.relative_gain(shots.Shots({0: 0.5, 4: 0.5}, 10), 4)
    with pytest.raises(OptionError, match="Use fewer shots"):
        shots.k_shot(model, data, (500,), rows=1)


def test_ranking_without_demonstrations_is_what_the_choices_head_says(llama):
    """The accuracy of zero shots is that of the model's own ranking, as `signal="choices"` scores it before any step."""
    model, data = llama
    rows = data.test.select(range(12))
    from luthier.methods.choices import Choices

    made = Adaptation.new(lt.methods.LoRA(rank=1), model.base, head=Choices(classes=3))
    made.task = data.task
    from luthier.train.fitted import as_fitted

    fitted = as_fitted(made, model)
    want = fitted.score(rows)["accuracy"]
    assert shots.k_shot(model, data, (0,), rows=12).accuracy[0] == pytest.approx(want)
