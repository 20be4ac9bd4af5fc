"""One set of numbers for each label: whose row gets which, on prompts, on keys and values, and on weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from luthier.errors import OptionError, RunError
from luthier.host import Adaptation, Adapted
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.by_label import ByLabel
from tests.host import bed

SOURCE = ByLabel(labels="good, bad, plain")
ROWS = ["bad", "good", "plain", "bad"]
PARTS = {"prompt": PromptTuning(length=3), "prefix": PTuningV2(length=3), "lora": LoRA(rank=2)}


def labelled(which, source=SOURCE):

    return dataclasses.replace(PARTS[which], source=source)


@torch.no_grad()
@pytest.mark.parametrize("which", list(PARTS))
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_row_has_what_an_adaptation_of_its_label_alone_would_give(which, name):
    base, batch = bed.base(name).double(), bed.batch(name)
    made = bed.shaken(Adaptation.new(labelled(which), base)).to(torch.float64)
    model = Adapted(base)
    with model.attached(made):
        together = bed.result(model, {**batch, "attributes": ROWS})
        numbers = bed.result(model, {**batch, "attributes": torch.tensor([1, 0, 2, 1])})
    assert torch.equal(together, numbers)
    for i, label in enumerate(ROWS):
        own = Adaptation.new(PARTS[which], base).to(torch.float64)
        for mine, theirs in zip(own.at(), made.at(), strict=True):
            for k, p in mine.values.items():
                p.data.copy_(theirs.values[k][["good", "bad", "plain"].index(label)])
        with model.attached(own):
            alone = bed.result(model, {k: v[i : i + 1] for k, v in batch.items()})
        bed.close(together[i : i + 1], alone, 1e-10)


def test_it_counts_labels_times_what_the_part_counts_and_each_label_starts_by_itself():
    base = bed.base("llama")
    plain = Adaptation.new(PARTS["prompt"], base).counts()["method"]
    made = Adaptation.new(labelled("prompt"), base)
    assert made.counts()["method"] == 3 * plain
    table = made.at()[0].values["P"]
    assert table.shape[0] == 3 and not torch.equal(table[0], table[1])


@torch.no_grad()
def test_without_labels_it_is_the_part_itself():
    base, batch = bed.base("llama"), bed.batch("llama")
    model, found = Adapted(base), []
    for source in (None, ByLabel()):
        part = PARTS["lora"] if source is None else labelled("lora", source)
        with model.attached(bed.shaken(Adaptation.new(part, base, seed=4))):
            found.append(bed.result(model, batch))
    bed.close(*found, 1e-5)


def test_only_the_tables_of_labels_in_the_batch_get_a_gradient():
    base, batch = bed.base("llama"), bed.batch("llama")
    made = Adaptation.new(labelled("prompt"), base)
    model = Adapted(base)
    with model.attached(made):
        table = made.at()[0].values["P"].requires_grad_(True)
        bed.result(
            model, {**batch, "attributes": ["good", "plain", "good", "plain"]}
        ).square().sum().backward()
    assert table.grad[0].any() and table.grad[2].any() and not table.grad[1].any()


@torch.no_grad()
def test_labels_that_do_not_fit_are_named():
    base, batch = bed.base("llama"), bed.batch("llama")
    model, made = Adapted(base), Adaptation.new(labelled("prompt"), base)
    for labels, said in (
        (["rude"] * 4, "no label is called 'rude'; there are good, bad, plain"),
        (None, "needs 'attributes'"),
    ):
        with model.attached(made), pytest.raises(RunError, match=said):
            model({**batch, **({"attributes": labels} if labels else {})})
    second = Adaptation.new(labelled("prompt", ByLabel(labels="a, b", attribute=1)), base)
    with model.attached(second), pytest.raises(RunError, match="reads attribute 1, and a row has 1"):
        model({**batch, "attributes": ["a"] * 4})
    for wrong, said in (("a, a", "empty or a repeated"), ("a | b", "are of 2 attributes")):
        with pytest.raises(OptionError, match=said):
            Adaptation.new(labelled("prompt", ByLabel(labels=wrong)), base)
    zero = bed.shaken(Adaptation.new(labelled("lora", ByLabel(labels="a, b", unseen="zero")), base))
    with model.attached(zero):
        got = bed.result(model, {**batch, "attributes": ["rude"] * 4})
    bed.close(got, bed.result(model, batch), 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("label", ["good", "plain"])
def test_one_label_of_a_change_of_weights_merges(label):
    base, batch = bed.base("llama"), bed.batch("llama")
    model = Adapted(base)
    model.attach("main", bed.shaken(Adaptation.new(labelled("lora"), base)))
    want = bed.result(model, {**batch, "attributes": [label] * 4})
    other = bed.result(model, {**batch, "attributes": ["bad"] * 4})
    model.merge("main", attributes=[label])
    got = bed.result(model, {**batch, "attributes": [label] * 4})
    bed.close(got, want, 1e-5)
    assert (want - other).abs().max() > 1e-3
