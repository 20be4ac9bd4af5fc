"""Control prefixes: which rows get which, plain prefix tuning at length zero, folding, and labels that nobody declared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import luthier as lt
from luthier.errors import OptionError, RunError
from luthier.host import Adaptation, Adapted
from luthier.host.bank import Bank
from luthier.methods.prefixes.control_prefixes import ControlPrefixes, looked_up
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.sources.control_mlp import ControlMLP
from luthier.sources.settle import settled
from tests.conformance.cells import Cell
from tests.conformance.properties import PROPERTIES
from tests.host import bed

LABELS = "formal, plain | short, long, endless"
ROWS = [("plain", "short"), ("formal", "endless"), ("plain", "long"), (0, 0)]
MODELS = ("bert", "llama", "gpt2", "t5")


def method(**options):
    return ControlPrefixes(length=3, control_length=2, labels=LABELS, **options)


def changed(part, base, dtype=torch.float32, **options):
    return bed.shaken(Adaptation.new(part, base, **options)).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("source", ["free", "mlp"])
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_mixed_labels_is_row_by_row(name, source):
    base = bed.base(name)
    model = Adapted(base)
    part = method(source=ControlMLP(inner=8)) if source == "mlp" else method()
    model.attach("main", changed(part, base))
    batch, found = bed.batch(name), []
    together = bed.result(model, {**batch, "attributes": ROWS})
    for i, labels in enumerate(ROWS):
        row = {k: v[i : i + 1] for k, v in batch.items()}
        found.append(bed.result(model, {**row, "attributes": [labels]}))
        other = bed.result(model, {**row, "attributes": [("formal", "long")]})
        assert (other - found[-1]).abs().max() > 1e-3
    bed.close(together, torch.cat(found), 1e-5)
    numbers = torch.tensor([[1, 0], [0, 2], [1, 1], [0, 0]])
    assert torch.equal(bed.result(model, {**batch, "attributes": numbers}), together)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"control_length": 0, "labels": LABELS}, {}])
@pytest.mark.parametrize("name", MODELS)
def test_without_controls_it_is_plain_prefix_tuning(name, options):
    base = bed.base(name)
    made = changed(ControlPrefixes(length=3, **options), base, seed=5)
    plain = changed(PTuningV2(length=3), base, seed=5)
    assert {k: tuple(v.shape) for k, v in made.state().items()} == {
        k: tuple(v.shape) for k, v in plain.state().items()
    }
    model, batch, found = Adapted(base), bed.batch(name), []
    for each in (made, plain):
        with model.attached(each):
            found.append(bed.result(model, batch))
    assert torch.equal(*found)


@torch.no_grad()
def test_rows_are_the_labels_own_then_the_general_prefix():
    base = bed.base("llama")
    at = changed(method(), base).at()[0]
    seen = []
    plain = ControlPrefixes.keys_values

    class Ctx:
        made, given = {}, {}

        def need(self, key):
            return [("plain", "endless")]

    keys, values = plain(at.part, at.t(None), Ctx())
    for got, which in ((keys, "K"), (values, "V")):
        tables = at.values
        want = torch.cat(
            [tables[f"{which}1"][:, 4:6], tables[f"{which}0"][:, 2:4], tables[which]], 1
        )  # endless is the third of attribute 1, plain the second of attribute 0
        assert torch.equal(got, want[None])
        seen.append(got.shape)
    assert seen == [(1, 2, 2 + 2 + 3, 8)] * 2


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_blocks_does_not_matter(name, monkeypatch):
    base = bed.base(name).double()
    model = Adapted(base)
    model.attach("main", changed(method(), base, torch.float64))
    batch = {**bed.batch(name), "attributes": ROWS}
    want = bed.result(model, batch)
    plain = ControlPrefixes.keys_values
    monkeypatch.setattr(
        ControlPrefixes, "keys_values", lambda self, t, ctx: [x.roll(3, -2) for x in plain(self, t, ctx)]
    )
    bed.close(bed.result(model, batch), want, 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_network_folds_away(name):
    base = bed.base(name)
    targets = "attention | cross_attention" if name == "t5" else "attention"
    made = changed(method(reparameterise=True, targets=targets), base)
    kinds = 3 if name == "t5" else 1
    assert made.method.source == ControlMLP(inner=800)
    names = {n.rpartition(":")[2].rpartition(".")[2] for n in made.trainable()}
    assert {f"{k}_{c}" for k in ("E", "E0", "E1", "W1", "W2") for c in range(kinds)} <= names
    plain = settled(made, base)
    assert not plain.method.reparameterise and not any("W1" in n for n in plain.state())
    model, batch, found = Adapted(base), {**bed.batch(name), "attributes": ROWS}, []
    for each in (made, plain):
        with model.attached(each):
            found.append(bed.result(model, batch))
    bed.close(found[1], found[0], 1e-5)


@torch.no_grad()
def test_generation_keeps_to_its_rows_with_and_without_a_cache():
    for name in ("llama", "t5"):
        base = bed.base(name)
        model, batch = Adapted(base), bed.batch(name)
        model.attach("main", changed(method(), base))
        written = {k: batch[k] for k in ("input_ids", "attention_mask")}
        options = {"max_new_tokens": 5, "do_sample": False, "num_beams": 2}
        with model.given(attributes=ROWS):
            cached = model.generate(**written, **options, use_cache=True)
            assert torch.equal(cached, model.generate(**written, **options, use_cache=False))
        for i, labels in enumerate(ROWS):
            with model.given(attributes=[labels]):
                one = model.generate(**{k: v[i : i + 1] for k, v in written.items()}, **options)
            assert torch.equal(one[0], cached[i])


@torch.no_grad()
def test_labels_that_were_not_declared():
    base, batch = bed.base("llama"), bed.batch("llama")
    model, made = Adapted(base), changed(method(), base)
    for labels, said in (
        ([("rude", "short")] * 4, "no label is called 'rude'; there are formal, plain"),
        ([("plain",)] * 4, "a row has 1 labels"),
        ([("plain", 3)] * 4, "no label is called '3'"),
    ):
        with model.attached(made), pytest.raises(RunError, match=said):
            model({**batch, "attributes": labels})
    with model.attached(made), pytest.raises(RunError, match="needs 'attributes'"):
        model(batch)
    with pytest.raises(OptionError, match="empty or a repeated label"):
        Adaptation.new(ControlPrefixes(labels="a, a"), base)
    made = changed(method(unseen="zero"), base)
    model.attach("main", made)
    got = model({**batch, "attributes": [("rude", "short")] * 4}).logits
    for at in made.at():
        for which in ("K0", "V0"):
            at.values[which][:, :2] = 0
    bed.close(model({**batch, "attributes": [("formal", "short")] * 4}).logits, got, 1e-6)


def test_a_table_gives_each_row_its_entry():
    table = torch.arange(2 * 6 * 1.0).view(2, 6, 1)
    got = looked_up(table, torch.tensor([2, -1, 0]), 2)
    assert got[0, :, :, 0].tolist() == [[4, 5], [10, 11]] and not got[1].any()
    assert torch.equal(looked_up(table.expand(3, -1, -1, -1), torch.tensor([2, -1, 0]), 2), got)


@torch.no_grad()
def test_a_bank_serves_rows_of_several_with_labels():
    base, batch = bed.base("llama"), bed.batch("llama")
    each = {n: changed(method(), base, seed=i) for i, n in enumerate("ab")}
    bank, model = Bank(base, each), Adapted(base)
    with model.attached(bank.adaptation):
        got = bank(model, {**batch, "attributes": ROWS}, list("abba")).logits
    for i, name in enumerate("abba"):
        with model.attached(each[name]):
            row = {**{k: v[i : i + 1] for k, v in batch.items()}, "attributes": [ROWS[i]]}
            bed.close(got[i : i + 1], model(row).logits, 1e-5)


@dataclass(frozen=True)
class Labelled(Cell):
    """A cell whose batches say the labels of every row."""

    def batch(self, **options):
        made = super().batch(**options)
        numbers = torch.tensor([[1, 0], [0, 2], [1, 1], [0, 0]])
        return {**made, "attributes": numbers.repeat(2, 1)[: len(made["input_ids"])]}


KEPT = (
    "nothing_is_dead", "rows_do_not_mix_and_padding_is_not_seen", "checkpointing_gives_the_same_gradients",
    "a_file_holds_all_of_it", "a_run_resumes_bitwise_inside_every_phase", "training_moves_nothing_else",
    "autocast_is_finite_and_close", "several_do_not_disturb_each_other",
)  # fmt: skip


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
@pytest.mark.parametrize("named", KEPT)
@pytest.mark.parametrize("reparameterise", [False, True])
def test_conformance_with_labels(named, name, reparameterise):
    own = method(reparameterise=reparameterise)
    if reparameterise:
        own = replace(own, source=ControlMLP(inner=4))
    PROPERTIES[named].check(Labelled("control_prefixes", name, own))


def test_the_count_with_labels():
    base = bed.base("t5")
    per_site = 2 * (3 + 2 * 5) * 4 * 8
    sites = base.config.num_layers + base.config.num_decoder_layers
    assert Adaptation.new(method(), base).counts()["method"] == sites * per_site
    made = Adaptation.new(method(reparameterise=True), base)
    d, inner, kinds = 32, 800, 2
    want = kinds * ((3 + 2 * 5) * d + (d + 1) * inner) + (inner + 1) * 2 * sites * d
    assert made.counts()["method"] == want


def test_a_split_tells_the_labels_of_its_rows():
    from luthier.data.split import Split
    from luthier.train.batches import encode

    data = lt.data("builtin:verdicts")
    part = Split(data.train.inputs[:6], data.train.targets[:6], np.array([[0, 1], [1, 2]] * 3))
    model = lt.load("builtin:t5", device="cpu")
    assert part.digest != Split(part.inputs, part.targets).digest
    two = part.select([1, 2])
    assert two.attributes.tolist() == [[1, 2], [0, 1]]
    assert encode(model.preprocess, two, data.task).batch([1, 0])["attributes"].tolist() == [[0, 1], [1, 2]]
    ranked = encode(model.preprocess, two, data.task, head=lt.methods.make("choices", {"classes": 3}))
    assert ranked.batch([0, 1])["attributes"].tolist() == [[1, 2]] * 3 + [[0, 1]] * 3
