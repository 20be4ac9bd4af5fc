"""Retrieval from data to predictions: its loss, its ranks, and that a run can be saved, resumed, searched and scored."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import train_testbed as bed
from torch.nn import functional as F

from luthier.cli.main import main
from luthier.data.load import load_data, load_split
from luthier.data.ranks import numbered, ranks, retrieval_scores
from luthier.data.scores import scores
from luthier.data.split import Data, Split
from luthier.data.task import Task
from luthier.errors import DataError, ModelError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.adapters.bottleneck import Adapter
from luthier.methods.embedding import Embedding
from luthier.methods.heads import LinearHead
from luthier.methods.low_rank.lora import LoRA
from luthier.signals.contrastive import Contrastive
from luthier.signals.objectives import Aims, objective_for
from luthier.train import checkpoint
from luthier.train.batches import Batches, encode
from luthier.train.fit import fit
from luthier.train.fitted import load_fitted
from luthier.train.pairs import check_batches

TASK = Task(kind="retrieval", modality="text", input="query", label="code")
PAIRED = dict(
    zip(("red", "blue", "good", "bad", "fine", "dull"), ("cat", "dog", "movie", "plot", "one", "two"))
)


def rows(number, seed):
    """A colour or a judgement finds the thing that it always goes with; which pair of words it is decides, not their order."""
    rng = np.random.default_rng(seed)
    queries, documents = [], []
    for _ in range(number):
        words = [str(w) for w in rng.choice(list(PAIRED), 3, replace=False)]
        queries.append("the " + " ".join(words))
        documents.append("is " + " ".join(PAIRED[w] for w in reversed(words)) + " so very")
    return Split(queries, documents)


def data(train=96, validation=24, test=24):
    parts = [rows(n, i) for i, n in enumerate((train, validation, test))]
    return Data(*parts, task=TASK, name="pairs")


def quick(**options):
    return {"progress": False, "batch_size": 16, "steps": 4, **options}


# -- ranks and scores


def test_a_rank_counts_every_other_text_that_is_as_near_and_equal_texts_once():
    own, first = numbered(["a", "b", "a", "c"])
    assert own.tolist() == [0, 1, 0, 2] and first == [0, 1, 3]
    candidates = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], np.float32)
    queries = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.6, 0.8]], np.float32)
    # similarities: (1, 0, .6), (.6, .8, 1), (0, 1, .8), (.6, .8, 1)
    assert ranks(queries, candidates, own).tolist() == [1, 2, 3, 1]
    assert ranks(np.zeros((2, 2), np.float32), candidates, own[:2]).tolist() == [
        3,
        3,
    ]  # ties count against it
    with pytest.raises(DataError, match="diverged"):
        ranks(queries * np.nan, candidates, own)


def test_scores_of_ranks_by_hand():
    found = scores(TASK, list("abcd"), np.array([1, 2, 5, 20]))
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 20) / 4)
    assert (found["recall@1"], found["recall@5"], found["recall@10"]) == (0.25, 0.75, 0.75)
    for odd in (np.array([0, 1]), np.array([0.5, 1.0]), np.ones((2, 2), int)):
        with pytest.raises(DataError, match="ranks"):
            retrieval_scores(odd)


# -- the loss


@pytest.mark.parametrize("reverse", [0.0, 0.5, 1.0])
def test_the_loss_is_the_cross_entropy_of_the_batch_without_twins(reverse):
    rng = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(5, 2, 8, generator=rng), dim=-1)
    labels = torch.tensor([0, 1, 2, 1, 4])  # rows 1 and 3 name one document
    made = Contrastive(temperature=0.2, reverse=reverse).row_losses(vectors.flatten(0, 1), labels)
    want = []
    for i in range(5):
        of = {"there": [], "back": []}
        for j in range(5):
            if i == j or labels[i] != labels[j]:
                of["there"].append(math.exp(float(vectors[i, 0] @ vectors[j, 1]) / 0.2))
                of["back"].append(math.exp(float(vectors[j, 0] @ vectors[i, 1]) / 0.2))
        own = math.exp(float(vectors[i, 0] @ vectors[i, 1]) / 0.2)
        there, back = (-math.log(own / sum(of[way])) for way in ("there", "back"))
        want.append((1 - reverse) * there + reverse * back)
    assert made.tolist() == pytest.approx(want, rel=1e-5)


def test_without_twins_it_is_torchs_cross_entropy_and_a_row_alone_costs_nothing():
    rng = torch.Generator().manual_seed(1)
    vectors = F.normalize(torch.randn(6, 2, 4, generator=rng), dim=-1)
    similar = vectors[:, 0] @ vectors[:, 1].T / 0.05
    made = Contrastive().row_losses(vectors.flatten(0, 1), torch.arange(6))
    torch.testing.assert_close(made, F.cross_entropy(similar, torch.arange(6), reduction="none"))
    assert float(Contrastive(reverse=0.5).row_losses(vectors[0], torch.tensor([3]))) == 0


def test_the_signal_names_its_options():
    assert objective_for(TASK) == Contrastive()
    aims = Aims(signal="contrastive temperature=0.1 reverse=0.5")
    assert objective_for(TASK, aims) == Contrastive(temperature=0.1, reverse=0.5)
    for odd in ("contrastive temperature=0", "contrastive reverse=2", "contrastive heat=1"):
        with pytest.raises(OptionError):
            objective_for(TASK, Aims(signal=odd))


# -- embeddings and batches


def test_embeddings_are_mean_pooled_unit_vectors_whatever_the_padding():
    model = bed.model()
    texts = ["the cat was red", "so very dull one two three plot"]
    adapted, pre = Adapted(model.base), model.preprocess
    head = Embedding(pooling="mean", width=32)
    adapted.attach("main", Adaptation.new(LoRA(rank=2), model.base, head=head))
    alone = [adapted(pre.collate(pre.encode([text]))).logits[0] for text in texts]
    together = adapted(pre.collate(pre.encode(texts))).logits
    torch.testing.assert_close(torch.stack(alone), together, atol=1e-5, rtol=1e-5)
    hidden = model.base(**pre.collate(pre.encode(texts[:1]))).last_hidden_state.mean(1)
    torch.testing.assert_close(together[:1], hidden / hidden.norm(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    assert not Adaptation.new(LoRA(rank=2), model.base, head=head).counts()["head"]


def test_a_batch_holds_a_query_and_its_document_one_behind_the_other():
    pre, split = bed.model().preprocess, Split(["red cat", "the dog"], ["a very very good movie", "a plot"])
    told = replace(split, attributes=np.array([["x"], ["y"]]))
    encoded = encode(pre, told, TASK)
    batch = encoded.batch([0, 1])
    texts = [pre.decode(ids[mask.bool()]) for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
    assert texts == ["red cat", "a very very good movie", "the dog", "a plot"]
    assert batch["labels"].tolist() == [0, 1] and encoded.per_row == 2
    assert batch["attributes"] == [("x",), ("x",), ("y",), ("y",)]
    assert encoded.lengths.tolist() == [7, 4]
    only = encode(pre, split, TASK, targets=False)
    assert only.per_row == 1 and len(only.batch([0, 1])["input_ids"]) == 2


# -- a run


def test_it_learns_saves_and_scores_by_hand(tmp_path):
    model, rows_ = bed.model(), data()
    before = model.fingerprint
    fitted = fit(model, rows_, Adapter(width=16), out=tmp_path / "run", rate=1e-2, **quick(steps=250))
    model.forget_fingerprint()
    assert model.fingerprint == before
    chance = sum(1 / (i + 1) for i in range(24)) / 24
    assert fitted.metrics["test"]["mrr"] > 2 * chance and fitted.metrics["parameters_head"] == 0
    # MRR once more, from single texts
    split = rows_.test
    queries, documents = fitted.embed(split.inputs), fitted.embed(list(dict.fromkeys(split.targets)))
    similar = queries @ documents.T
    own = [list(dict.fromkeys(split.targets)).index(text) for text in split.targets]
    by_hand = np.mean([1 / (1 + (row > row[i]).sum()) for row, i in zip(similar, own)])
    assert fitted.metrics["test"]["mrr"] == pytest.approx(by_hand, abs=1e-6)
    # reloaded
    again = load_fitted(tmp_path / "run", model)
    assert again.score(split) == fitted.metrics["test"]
    nearest = again.search(split.inputs[:3], split.targets, top=2)
    assert [len(row) for row in nearest] == [2, 2, 2] and nearest[0][0][1] >= nearest[0][1][1]
    assert again.predict(split)[0] == split.targets[nearest[0][0][0]]
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert np.mean([1 / line["rank"] for line in lines]) == pytest.approx(by_hand, abs=1e-6)


def test_it_goes_to_peft_and_back_merges_and_adds(tmp_path):
    from luthier.convert import from_peft
    from luthier.train.fitted import as_fitted

    model, rows_ = bed.model(), data()
    fitted = fit(model, rows_, LoRA(rank=2), rate=1e-2, **quick(steps=10))
    assert any("embedding on mean pooling" in line for line in fitted.export(tmp_path / "peft"))
    back = as_fitted(from_peft(tmp_path / "peft", model), model)
    assert np.allclose(back.embed(rows_.test.inputs), fitted.embed(rows_.test.inputs), atol=1e-5)
    assert (0.5 * fitted + 0.5 * fitted).score(rows_.test) == fitted.score(rows_.test)
    batch = model.preprocess.collate(model.preprocess.encode(rows_.test.inputs))
    merged = fitted.merge()(batch).logits.detach().numpy()
    assert np.allclose(merged, fitted.embed(rows_.test.inputs), atol=1e-5)


def test_a_killed_run_goes_on_bitwise(tmp_path, monkeypatch):
    whole = fit(bed.model(), data(), LoRA(rank=2), out=tmp_path / "whole", **quick(checkpoint_every=2))
    points = []

    def die(point):
        points.append(point)
        if len(points) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_barrier", die)
    with pytest.raises(KeyboardInterrupt):
        fit(bed.model(), data(), LoRA(rank=2), out=tmp_path / "cut", **quick(checkpoint_every=2))
    monkeypatch.undo()
    resumed = fit(bed.model(), data(), LoRA(rank=2), out=tmp_path / "cut", **quick(checkpoint_every=2))
    for a, b in zip(whole.adaptation.state().values(), resumed.adaptation.state().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("kind", "side"), [("decoder", ""), ("encoder-decoder", "encoder")])
def test_decoders_pool_their_last_token_and_encoder_decoders_their_encoder(kind, side):
    model = bed.model(kind)
    queries = [s.name for s in model.structure.sites if s.name.startswith(side) and s.role.endswith("query")]
    options = {"targets": queries[0]} if side else {}
    fitted = fit(model, data(), LoRA(rank=2, **options), **quick())
    assert fitted.adaptation.head.pooling == model.pooling
    assert fitted.score(data().test) == fitted.metrics["test"]


# -- refusals


def test_what_cannot_be_trained_is_refused_before_training():
    model = bed.model()
    for options, word in (
        ({"micro_batch": 4}, "micro_batch"),
        ({"batch_size": 1}, "2 at least"),
        ({"signal": "choices"}, "contrastive"),
        ({"signal": "infoprompt"}, "retrieval"),
    ):
        with pytest.raises(OptionError, match=word):
            fit(model, data(), LoRA(rank=2), **quick(**options))
    with pytest.raises(OptionError, match="one process"):
        check_batches(TASK, 16, None, world=2)
    check_batches(bed.data().task, 16, 4, world=2)  # other tasks' batches may be cut up
    with pytest.raises(ModelError, match="head"):
        fit(model, data(), LoRA(rank=2), head=LinearHead(width=32, pooling="none"), **quick())
    with pytest.raises(ModelError, match="no vector of a text"):
        fit(replace(model, pooling="none"), data(), LoRA(rank=2), **quick())
    with pytest.raises(OptionError, match="retrieval"):
        fit(model, bed.data(), LoRA(rank=2), **quick(signal="contrastive"))


def test_what_names_no_document_is_refused():
    fitted = fit(bed.model(), data(), LoRA(rank=2), **quick())
    for ask in (fitted.answers, fitted.predict):
        with pytest.raises(DataError, match="search"):
            ask(["the cat"])
    with pytest.raises(DataError, match="no vectors"):
        replace(fitted, task=bed.data().task).embed(["the cat"])


# -- data and the command line


def test_columns_and_splits(tmp_path):
    file = tmp_path / "pairs.jsonl"
    made = rows(40, 3)
    file.write_text(
        "\n".join(json.dumps({"code": d, "query": q, "id": str(i)}) for i, (q, d) in enumerate(made))
    )
    read = load_data(str(file), kind="retrieval")
    assert (read.task.input, read.task.label, read.task.metric) == ("query", "code", "mrr")
    assert Task.from_card(read.task.model_dump(mode="json")) == read.task
    whole = load_split(str(file), read.task)
    assert (whole.inputs, whole.targets) == (made.inputs, made.targets)
    named = load_data(str(file), kind="retrieval", input="code", label="query", metric="recall@5")
    assert named.task.metric == "recall@5"
    with pytest.raises(DataError, match="retrieval needs one text column"):
        load_data(str(file), kind="retrieval", input="query,id", label="code")
    with pytest.raises(DataError, match="text to find"):
        load_data([{"a": "x", "b": "y", "c": "z"}] * 4, kind="retrieval")


def test_from_arguments_to_findings(tmp_path, capsys):
    file, texts, out = tmp_path / "pairs.jsonl", tmp_path / "texts.txt", str(tmp_path / "run")
    made = rows(40, 4)
    file.write_text("\n".join(json.dumps({"query": q, "code": d}) for q, d in made))
    texts.write_text("is dog cat so very\nis movie plot so very\n")
    shared = ["--device", "cpu"]
    given = [
        "fit",
        "--model",
        "builtin:bert",
        "--data",
        str(file),
        "--kind",
        "retrieval",
        "--method",
        "lora",
        "--steps",
        "3",
    ]
    assert main([*given, "--signal", "contrastive temperature=0.1", "--out", out, "--quiet", *shared]) == 0
    assert "mrr" in capsys.readouterr().out
    assert main(["eval", out, "--data", str(file), "--json", *shared]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["metrics"]["mrr"] <= 1
    assert (
        main(
            ["predict", out, "--text", "the red dog", "--among", str(texts), "--top", "2", "--json", *shared]
        )
        == 0
    )
    [found] = json.loads(capsys.readouterr().out)
    assert {n["text"] for n in found["nearest"]} == {"is dog cat so very", "is movie plot so very"}
    assert found["prediction"] == found["nearest"][0]["text"]
    assert main(["predict", out, "--data", str(file), "--out", str(tmp_path / "f.csv"), *shared]) == 0
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 41
    capsys.readouterr()
    assert main(["predict", out, "--text", "the red dog", *shared]) == 2
    assert "--among" in capsys.readouterr().err


def test_batches_differ_between_epochs_but_a_document_keeps_its_number():
    encoded = encode(bed.model().preprocess, data(train=20).train, TASK)
    batches = Batches({"train": encoded}, batch_size=10, seed=0)
    for step in range(4):
        where = batches.rows("train", step)
        assert torch.equal(batches.whole("train", step)["labels"], encoded.targets[where])
