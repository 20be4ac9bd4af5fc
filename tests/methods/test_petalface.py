"""PETALface: what each row of a batch gets of two pairs, and what merges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tr

import luthier as lt
from luthier.data.split import Data, Split
from luthier.data.task import Task
from luthier.errors import DataError, OptionError, RunError
from luthier.host import Adaptation, Adapted
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.low_rank.petalface import PETALface
from luthier.sources.by_covariate import ByCovariate
from tests.host import bed

ROWS = torch.tensor([1.0, 0.0, 0.3, 0.8])


def method(**options):
    return PETALface(rank=2, alpha=3.0, **{"covariate": 0, "threshold": 0.5, **options})


def made(base, **options):
    return bed.shaken(Adaptation.new(method(**options), base), 0.3)


def single(base, both, which):
    """The plain LoRA that is one of the two pairs."""
    own = Adaptation.new(LoRA(rank=2, alpha=3.0, targets=both.method.targets), base)
    own.to(next(iter(both.trainable().values())).dtype)
    for mine, theirs in zip(own.at(), both.at(), strict=True):
        mine.values["A"].data.copy_(theirs.values["A"][2 * which : 2 * which + 2])
        mine.values["B"].data.copy_(theirs.values["B"][:, 2 * which : 2 * which + 2])
    return own


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "t5"])
def test_the_ends_are_the_single_pairs_merged_and_between_them_a_row_has_its_own_blend(name):
    base = bed.base(name).double()
    x = {k: v.double() if v.is_floating_point() else v for k, v in bed.batch(name).items()}
    model, both = Adapted(base), made(base).to(torch.float64)
    with model.attached(both):
        mixed = bed.result(model, {**x, "covariates": ROWS[:, None]})
        for i, q in enumerate(ROWS):
            row = {k: v[i : i + 1] for k, v in x.items()}
            alone = bed.result(model, {**row, "covariates": q[None, None]})
            bed.close(mixed[i : i + 1], alone, 1e-10)
        ends = [bed.result(model, {**x, "covariates": torch.full((4, 1), q)}) for q in (1.0, 0.0)]
    assert not torch.allclose(*ends, atol=1e-2)
    for which, end in enumerate(ends):
        model.attach("one", single(base, both, which))
        model.merge("one")
        bed.close(bed.result(model, x), end, 1e-5)
        model.detach("one")


@torch.no_grad()
@pytest.mark.parametrize("q", [0.0, 0.35, 1.0])
def test_it_merges_for_one_number(q):
    base, x = bed.base("vit"), bed.batch("vit")
    model = Adapted(base)
    model.attach("main", made(base))
    told = {**x, "covariates": torch.full((4, 1), q)}
    want, other = bed.result(model, told), bed.result(model, {**x, "covariates": torch.full((4, 1), 0.6)})
    with pytest.raises(RunError, match="needs 'covariates'"):
        model.merge("main")
    model.merge("main", covariates=[[q]])
    bed.close(bed.result(model, told), want, 1e-5)
    assert (want - other).abs().max() > 1e-3


@torch.no_grad()
def test_rows_of_other_adaptations_need_no_number():
    base, x = bed.base("bert"), bed.batch("bert")
    model = Adapted(base)
    model.attach("blend", made(base))
    model.attach("plain", bed.shaken(Adaptation.new(LoRA(rank=2), base)))
    who = ["blend", "plain", "plain", "blend"]
    told = [[0.2], None, None, [0.9]]
    mixed = bed.result(model, {**x, "adaptation": who, "covariates": told})
    for i, name in enumerate(who):
        with model.using(name):
            row = {k: v[i : i + 1] for k, v in x.items()}
            alone = bed.result(model, {**row, "covariates": [told[i] or [0.0]]})
        bed.close(mixed[i : i + 1], alone, 1e-5)


@torch.no_grad()
def test_every_window_of_an_image_has_the_images_own_blend():
    torch.manual_seed(0)
    config = tr.SwinConfig(
        image_size=16, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    base = tr.SwinModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    model, x = Adapted(base), {"pixel_values": torch.randn(4, 3, 16, 16)}
    with model.attached(made(base)):
        mixed = model({**x, "covariates": ROWS}).hidden
        for i, q in enumerate(ROWS):
            alone = model({"pixel_values": x["pixel_values"][i : i + 1], "covariates": q[None]}).hidden
            bed.close(mixed[i : i + 1], alone, 1e-5)
    assert not torch.allclose(mixed, model(x).hidden, atol=1e-2)


@torch.no_grad()
def test_without_a_covariate_every_row_has_half_of_each_and_the_projection_a_plain_pair():
    base, x = bed.base("vit"), bed.batch("vit")
    model, both = Adapted(base), made(base)
    half = bed.shaken(Adaptation.new(method(covariate=None, projection="mlp.down[-1:]"), base), 0.3)
    assert [p.part.targets for p in half.placed()] == [both.method.targets, "mlp.down[-1:]"]
    assert half.counts()["method"] == 9 * 4 * 64 + 2 * 96
    for mine, theirs in zip(half.placed()[0].ats(), both.at(), strict=True):
        for k, p in mine.values.items():
            p.data.copy_(theirs.values[k])
    last = half.placed()[1].ats()[0].values["B"].data
    last.zero_()
    with model.attached(both):
        want = bed.result(model, {**x, "covariates": torch.full((4, 1), 0.5)})
    with model.attached(half):
        bed.close(bed.result(model, x), want, 1e-5)
        last[0].fill_(1.0)
        assert not torch.allclose(bed.result(model, x), want, atol=1e-3)


def images(rows=24):
    """Noise, of which every other image was drawn on a grid of 4 x 4: blurred."""
    rng = np.random.default_rng(0)
    made = rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    made[::2] = np.kron(made[::2, ::8, ::8], np.ones((1, 8, 8, 1), np.uint8))
    task = Task(kind="classification", modality="image", labels=("a", "b"), input="image", label="label")
    parts = [Split(made, np.arange(rows) // 2 % 2) for _ in range(3)]
    return Data(*parts, task, "noise")


def test_a_fit_by_measured_sharpness_keeps_the_training_mean_and_predicts_bare_images(tmp_path):
    model, data = lt.load("builtin:vit"), lt.data(images(), covariates="sharpness")
    fitted = lt.fit(model, data, PETALface(rank=2, covariate=0), steps=3, batch_size=8, out=tmp_path / "run")
    held = fitted.adaptation.placed()[0].common["threshold"]
    assert float(held) == pytest.approx(float(data.train.covariates.mean()), abs=1e-6)
    assert not held.requires_grad
    bare = fitted.predict_proba(data.test.inputs)
    np.testing.assert_array_equal(bare, fitted.predict_proba(data.test))
    again = lt.load_adaptation(tmp_path / "run", model)
    np.testing.assert_array_equal(again.predict_proba(data.test.inputs), bare)


def test_what_does_not_fit_is_named():
    model, base = lt.load("builtin:vit"), bed.base("vit")
    with pytest.raises(DataError, match=r"these rows have 0\. Name its column with --covariate"):
        lt.fit(model, images(), PETALface(covariate=0), steps=1)
    with pytest.raises(DataError, match=r"reads number 3 .* these rows have 1"):
        lt.fit(model, lt.data(images(), covariates="sharpness"), PETALface(covariate=3), steps=1)
    with pytest.raises(OptionError, match="blends nothing"):
        Adaptation.new(LoRA(rank=2, source=ByCovariate()), base)
    adapted = Adapted(base)
    with (
        adapted.attached(made(base, covariate=1)),
        pytest.raises(RunError, match="reads covariate 1, and a row has 1"),
    ):
        adapted({**bed.batch("vit"), "covariates": ROWS})
    with adapted.attached(made(base)), pytest.raises(RunError, match="missing or not finite"):
        adapted({**bed.batch("vit"), "covariates": ROWS / 0})
