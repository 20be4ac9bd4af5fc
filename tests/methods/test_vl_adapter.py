"""VL-Adapter: what tasks share, what each row gets, and what a source by label keeps for each label."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError, RunError
from luthier.host import Adaptation, Adapted
from luthier.methods.adapters.bottleneck import Adapter
from luthier.methods.adapters.vl_adapter import VLAdapter
from luthier.methods.low_rank.lora import LoRA
from luthier.sources.by_label import ByLabel
from tests.host import bed

TASKS, ROWS = "caption, question, count", ["question", "caption", "count", "question"]


def made(base, sharing, seed=0, **options):
    method = VLAdapter(tasks=TASKS, sharing=sharing, width=4, **options)
    return bed.shaken(Adaptation.new(method, base, seed=seed))


def test_the_counts_are_those_of_one_adapter_half_and_three():
    base = bed.base("t5")
    counts = {s: made(base, s).counts()["method"] for s in ("single", "half", "multiple")}
    sites = len(made(base, "single").at())
    assert sites == 3 + 6 + 6  # cross-attention, self-attention and feed-forward layers of both towers
    assert counts["multiple"] == 3 * counts["single"] == 3 * sites * (2 * 4 * 32 + 4 + 32)
    assert counts["half"] == sites * (4 * 32 + 4 + 3 * (32 * 4 + 32))


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "t5", "vit"])
@pytest.mark.parametrize("sharing", ["half", "multiple"])
def test_a_row_has_its_own_tasks_adapter(name, sharing):
    model, x = Adapted(bed.base(name).double()), bed.batch(name)
    x = {k: v.double() if v.is_floating_point() else v for k, v in x.items()}
    shared = made(model.base, sharing).to(torch.float64)
    with model.attached(shared):
        together = bed.result(model, {**x, "attributes": ROWS})
        with pytest.raises(RunError, match="no label is called"):
            model({**x, "attributes": ["drawing"] * 4})
    for row, task in enumerate(ROWS):
        own = Adaptation.new(Adapter(width=4, activation="gelu", targets=shared.method.targets), model.base)
        own.to(torch.float64)
        for mine, theirs in zip(own.at(), shared.at(), strict=True):
            for k, p in mine.values.items():
                held = theirs.values[k]
                own_one = sharing == "multiple" or k.startswith("up")
                assert held.dim() == p.dim() + own_one
                p.data.copy_(held[TASKS.split(", ").index(task)] if own_one else held)
        with model.attached(own):
            alone = bed.result(model, {k: v[row : row + 1] for k, v in x.items()})
        bed.close(together[row : row + 1], alone, 1e-9)
    with model.attached(shared):
        swapped = bed.result(model, {**x, "attributes": ["count"] * 4})
    assert not torch.allclose(swapped, together, atol=1e-2)


@torch.no_grad()
def test_every_sharing_begins_as_the_base_and_norms_are_one_set_for_all():
    model, x = Adapted(bed.base("bert")), bed.batch("bert")
    want = bed.result(model, x)
    for sharing in ("single", "half", "multiple"):
        for norms in (False, True):
            method = VLAdapter(tasks=TASKS, sharing=sharing, width=4, norms=norms)
            fresh = Adaptation.new(method, model.base)
            with model.attached(fresh):
                assert torch.allclose(bed.result(model, {**x, "attributes": ROWS}), want, atol=1e-6)
            assert len(fresh.placed()) == 1 + norms
    norms = sum(p.numel() for n, p in fresh.trainable().items() if ".parts.1." in f".{n}")
    assert norms == 2 * 32 * 7


def test_a_source_by_label_keeps_some_tensors_for_all_labels():
    base = bed.base("bert")
    part = LoRA(rank=2, source=ByLabel(labels="a, b", tensors="B"))
    values = Adaptation.new(part, base).at()[0].values
    assert values["A"].shape == (2, 32) and values["B"].shape == (2, 32, 2)
    with pytest.raises(OptionError, match="has no tensor 'C'; it has A, B"):
        Adaptation.new(LoRA(rank=2, source=ByLabel(labels="a, b", tensors="C")), base)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(OptionError, match="needs the tasks' names"):
        VLAdapter(sharing="half").parts()
    with pytest.raises(OptionError, match="2 attributes"):
        VLAdapter(tasks="a, b | c, d").parts()
