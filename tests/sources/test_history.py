"""Prompts from histories: what padding, order and emptiness do to them, which items are read, and a run over files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import luthier as lt
from luthier.cli.main import main
from luthier.errors import DataError, ModelError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.options import from_card, to_card
from luthier.methods.prompts.persoma import Persoma
from luthier.models import histories
from luthier.models.histories import HistoryReader, diverse
from luthier.sources.history import History, stretches
from tests.host import bed

WIDTH = 12
ADAPTERS = ["mlp", "transformer", "perceiver"]


def method(**options):
    made = {"item_width": WIDTH, "items": 7, "inner": 8, "layers": 2, "heads": 2}
    return Persoma(length=3, source=History(**{**made, **options}))


def vectors(items, rows=4, seed=0):
    x = torch.randn(rows, items, WIDTH, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=-1, keepdim=True)


def said(adapter, x, seen, **options):
    base = bed.base("bert")
    made = bed.shaken(Adaptation.new(method(adapter=adapter, **options), base))
    model = Adapted(base)
    with torch.no_grad(), model.attached(made):
        return bed.result(model, {**bed.batch("bert"), "history": x, "history_mask": seen})


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_padding_items_change_nothing(adapter, positions):
    x = vectors(5)
    seen = torch.ones(4, 5, dtype=torch.bool)
    seen[1, 3:] = False
    want = said(adapter, x, seen, positions=positions)
    padded = torch.cat([torch.where(seen[..., None], x, 50.0), torch.full((4, 2, WIDTH), 9.0)], 1)
    bed.close(said(adapter, padded, torch.cat([seen, torch.zeros(4, 2, dtype=torch.bool)], 1), positions=positions), want, 1e-5)  # fmt: skip
    assert not torch.allclose(said(adapter, x.roll(1, 0), seen, positions=positions), want, atol=1e-3)


def test_a_perceiver_without_positions_does_not_see_the_order():
    x, seen = vectors(6), torch.ones(4, 6, dtype=torch.bool)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    bed.close(said("perceiver", x[:, order], seen), said("perceiver", x, seen), 1e-5)
    with_places = [said("perceiver", y, seen, positions=True) for y in (x[:, order], x)]
    assert not torch.allclose(*with_places, atol=1e-4)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_empty_history_is_that_of_nobody(adapter):
    x, seen = vectors(4), torch.ones(4, 4, dtype=torch.bool)
    seen[2] = False
    got = said(adapter, x, seen)
    base = bed.base("bert")
    made = bed.shaken(Adaptation.new(method(adapter=adapter), base))
    model = Adapted(base)
    with torch.no_grad(), model.attached(made):
        nobody = bed.result(model, bed.batch("bert"))
    bed.close(got[2], nobody[2], 1e-5)
    assert not torch.allclose(got[0], nobody[0], atol=1e-3)


def test_stretches_by_hand():
    z = torch.arange(5.0)[None, :, None].expand(2, -1, 1).clone()
    seen = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()
    got = stretches(z, seen, 3)[..., 0]
    # five items in three stretches: 0 1 | 1 2 3 | 3 4; two items (1 and 2): 1 | 1 2 | 2
    torch.testing.assert_close(got, torch.tensor([[0.5, 2.0, 3.5], [1.0, 1.5, 2.0]]))


def test_every_trained_number_of_each_adapter_gets_a_gradient():
    for adapter in ADAPTERS:
        base = bed.base("llama")
        made = bed.shaken(Adaptation.new(method(adapter=adapter, positions=True), base))
        model = Adapted(base)
        seen = torch.ones(4, 7, dtype=torch.bool)
        seen[0] = False
        with model.attached(made):
            out = model({**bed.batch("llama"), "history": vectors(7), "history_mask": seen})
            out.logits.square().mean().backward()
        for name, p in made.trainable().items():
            if not (adapter == "mlp" and "places" in name):
                assert p.grad is not None and p.grad.abs().sum() > 0, (adapter, name)


class Counting:
    """Stands for the encoder: a text's vector is its number in a plane."""

    def __call__(self, name, texts):
        return {t: torch.tensor([float(t), 1.0]) for t in texts}


def test_samplers(monkeypatch):
    monkeypatch.setattr(histories, "embedded", Counting())
    own = [str(i) for i in (0, 1, 2, 3, 50, 51, 100)]

    def read(sampler, items=3, seed=0, rows=(own,)):
        x, seen = HistoryReader("it", 2, items, sampler, seed).read(rows)
        return [[str(int(v[0])) for v, s in zip(row, there, strict=True) if s] for row, there in zip(x, seen, strict=True)]  # fmt: skip

    assert read("recent") == [["50", "51", "100"]]
    assert read("diverse") == [["0", "50", "100"]]
    drawn = read("random", rows=(own, own[:2], own))
    assert drawn[0] == drawn[2] and drawn[1] == own[:2] and len(drawn[0]) == 3
    assert drawn[0] == sorted(drawn[0], key=own.index)
    assert len({tuple(read("random", seed=s)[0]) for s in range(20)}) > 5
    assert diverse([torch.tensor([1.0])] * 5, 2) == [0, 4]
    with pytest.raises(ModelError, match="item_width=2"):
        HistoryReader("it", 3, 2, "recent").read([own])


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(OptionError, match="not divided by heads"):
        Adaptation.new(method(adapter="perceiver", inner=9), bed.base("bert"))
    for encoder in ("../somewhere", "someone/model", "builtin:../x"):  # as a card from anywhere may name
        with pytest.raises(OptionError, match="should match pattern"):
            from_card({**to_card(History()), "encoder": encoder})


@pytest.fixture
def users(tmp_path):
    """What a user likes stands in the history alone."""
    rows = [
        {"text": "What next?", "label": label, "events": [f"saw a {word} film"] * (1 + i % 3)}
        for i in range(10)
        for label, word in (("a", "funny"), ("b", "sad"))
    ]
    path = tmp_path / "users.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_run_over_a_file_of_histories(users, tmp_path, capsys):
    run = str(tmp_path / "run")
    asked = ["--input", "text", "--label", "label", "--history", "events"]
    fit = ["fit", "--model", "builtin:bert", "--data", str(users), "--out", run, "--method", "persoma"]
    small = ["--set", "length=2", "source.items=4", "source.inner=16"]
    assert main([*fit, *asked, *small, "--steps", "30", "--batch-size", "8", "--quiet"]) == 0
    assert main(["eval", run, "--data", str(users), "--json"]) == 0
    assert main(["predict", run, "--data", str(users), "--out", str(tmp_path / "p.jsonl"), "--json"]) == 0
    capsys.readouterr()
    assert main(["predict", run, "--text", "What next?"]) == 2
    assert "--history" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert len({line["probability"] for line in lines}) > 1  # the texts are all alike


def test_without_a_column_of_histories_it_is_refused():
    from luthier.data.split import Data, Split
    from luthier.data.task import Task

    split = Split(["x", "y"] * 4, np.array([0, 1] * 4))
    kind = Task(kind="classification", modality="text", input="text", label="label", labels=("a", "b"))
    model = lt.load("builtin:bert", device="cpu")
    with pytest.raises(DataError, match="persoma reads a history"):
        lt.fit(model, Data(split, None, None, kind, "none"), Persoma(), steps=1, progress=False)
