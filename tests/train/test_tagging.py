"""Tagging from data to predictions: it learns what no word alone tells, with every method, and resumes bitwise."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import train_testbed as bed

from luthier import methods
from luthier.data.split import Data, Split
from luthier.data.task import Task
from luthier.errors import DataError, FileFormatError, ModelError, OptionError
from luthier.host import Adapted
from luthier.methods.heads import LinearHead
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.sparse.parameters import Full
from luthier.train import checkpoint
from luthier.train.batches import encode
from luthier.train.fit import fit
from luthier.train.fitted import load_fitted
from tests.conformance.cells import Cell, parts, started
from tests.host import bed as host

LABELS = ("B-ANIMAL", "B-COLOUR", "I-ANIMAL", "O")
NAMES = ("cat", "dog", "red", "blue")


def sentences(rows, seed):
    """A name is an animal behind `good`, a colour behind `bad`, and nothing elsewhere; a second one joins an animal."""
    rng = np.random.default_rng(seed)
    inputs, targets = [], []
    for _ in range(rows):
        words, tags = [], []
        while len(words) < rng.integers(3, 10):
            before = rng.choice(["good", "bad", "the", "was"])
            name = str(rng.choice(NAMES))
            words += [str(before), name]
            tags += [3, {"good": 0, "bad": 1}.get(before, 3)]
            if before == "good" and rng.random() < 0.3:
                words.append(str(rng.choice(NAMES)))
                tags.append(2)
        inputs.append(tuple(words))
        targets.append(np.array(tags, np.int64))
    return Split(inputs, targets)


def data(train=64, validation=24, test=24, seed=0):
    task = Task(kind="tagging", modality="words", labels=LABELS, input="tokens", label="tags")
    parts = [sentences(n, seed + i) if n else None for i, n in enumerate((train, validation, test))]
    return Data(*parts, task=task, name="tiny")


def quick(**options):
    return {"progress": False, "batch_size": 16, "epochs": 2, **options}


def test_it_learns_what_no_word_tells_saves_and_loads(tmp_path):
    from luthier.compare.baselines import fit_baseline
    from luthier.data.scores import scores

    model, given = bed.model(), data(train=256)
    fitted = fit(
        model, given, Full(), out=tmp_path / "run", **quick(epochs=20, rate=3e-3, evaluate_every=1000)
    )
    found = fitted.metrics["test"]
    baselines = {
        name: scores(
            given.task,
            given.test.targets,
            fit_baseline(name, model, given, scores=scores).predict(given.test.inputs),
        )
        for name in ("majority", "word", "probe")
    }
    assert baselines["majority"]["entity_f1"] == 0
    assert (
        found["entity_f1"] > 0.75 > 0.4 > max(baselines["word"]["entity_f1"], baselines["probe"]["entity_f1"])
    )
    loaded = load_fitted(tmp_path / "run", bed.model())
    assert loaded.score(given.test) == pytest.approx(found)
    for a, b in zip(loaded.predict_proba(given.test.inputs), fitted.predict_proba(given.test.inputs)):
        assert np.array_equal(a, b) and np.allclose(a.sum(1), 1, atol=1e-5)
    said = loaded.predict(given.test.inputs)
    assert [len(tags) for tags in said] == [len(words) for words in given.test.inputs]
    assert {tag for tags in said for tag in tags} <= set(LABELS) and loaded.predict([]) == []
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert rows[0]["input"] == list(given.test.inputs[0]) and rows[0]["predicted"] == said[0]
    assert rows[0]["target"] == [LABELS[t] for t in given.test.targets[0]]


ARCHITECTURES = ("bert", "llama", "gpt2", "t5", "mamba")


def one_of_each_kind():
    """Cells of one method for every place and source that there is: what the head gets hangs on these alone."""
    kinds = {}
    for name, entry in sorted(methods.entries().items()):
        if name in parts():
            kinds.setdefault((entry["place"], entry["source"]), name)
    return [Cell(name, architecture) for name in kinds.values() for architecture in ARCHITECTURES]


@pytest.mark.parametrize("cell", one_of_each_kind(), ids=str)
def test_every_kind_of_method_gives_every_token_its_own_logits(cell):
    """Prompts in front are trimmed before the head: a row alone has the logits that it has in a padded batch, and the
    loss reaches what is trained."""
    if cell.why_not() is not None:
        return  # the conformance suite asks, and sees it refused
    base, part, name = cell.base(), cell.part, cell.architecture
    adapted = Adapted(base)
    head = LinearHead(classes=5, pooling="none", width=host.WIDTH)
    made = host.shaken(started(part, base, host.batch(name), head=head, members=cell.members(base)))
    adapted.attach("main", made)
    batch = {k: v for k, v in host.batch(name).items() if not k.startswith("decoder")}
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    batch["attention_mask"][1, 6:] = 0  # training pads on the right
    batch["labels"] = torch.zeros_like(batch["input_ids"])  # context: must not reach the base
    found = adapted(batch).logits
    assert found.shape == (*batch["input_ids"].shape, 5)
    alone = adapted(
        {"input_ids": batch["input_ids"][1:2, :6], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    )
    assert torch.allclose(
        found[1, :6], alone.logits[0], atol=2e-4 * max(1, float(found.detach().abs().max()))
    )
    if name in ("bert", "t5"):  # both directions: another last token changes what the first says
        other = {**batch, "input_ids": batch["input_ids"].clone()}
        other["input_ids"][0, -1] = (other["input_ids"][0, -1] + 1) % 30 + 2
        assert not torch.equal(adapted(other).logits[0, 0], found[0, 0])
    found.pow(2).mean().backward()
    assert any(p.grad is not None for p in made.trainable().values())


def test_a_mixed_batch_gives_each_row_its_own_head():

    head = LinearHead(classes=3, pooling="none", width=4)
    x, w, b = torch.randn(2, 5, 4), torch.randn(2, 3, 4), torch.randn(2, 3)

    found = head.logits(x, None, SimpleNamespace(W=w, b=b), None)
    for i in range(2):
        assert torch.allclose(found[i], x[i] @ w[i].T + b[i], atol=1e-6)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
def test_fit_tags_with_every_kind_of_model(kind):
    # a head reads T5's encoder: sites of its decoder would be dead, as for classification
    own = {"targets": "encoder.block.*.q | encoder.block.*.v"} if kind == "encoder-decoder" else {}
    fitted = fit(bed.model(kind), data(), bed.lora(**own), **quick(epochs=1))
    assert set(fitted.metrics["test"]) == {"entity_f1", "accuracy", "macro_f1"}
    assert fitted.metrics["parameters_head"] == 4 * 33


def test_micro_batches_equal_the_large_batch():
    given, found = data(train=32, validation=0, test=0), []
    for micro in (None, 5, 1):
        options = quick(class_weights=True, micro_batch=micro)
        found.append(bed.state_of(fit(bed.model(), given, bed.lora(), **options)))
    for other in found[1:]:
        assert all(torch.allclose(v, other[k], atol=2e-5) for k, v in found[0].items())


def test_the_loss_is_the_mean_over_tagged_tokens():
    from luthier.signals.objectives import TagCrossEntropy

    logits, labels = torch.randn(2, 4, 3), torch.tensor([[-100, 0, 2, -100], [-100, 1, -100, -100]])
    chosen = labels != -100
    expected = -logits.log_softmax(-1)[chosen].gather(1, labels[chosen][:, None])[:, 0]
    out, batch = type("Out", (), {"logits": logits})(), {"labels": labels}
    assert float(TagCrossEntropy().mean(out, batch)) == pytest.approx(float(expected.mean()))
    weights = (1.0, 2.0, 0.5)
    by = torch.tensor([weights[0], weights[2], weights[1]])
    objective = TagCrossEntropy(class_weights=weights)
    assert float(objective.mean(out, batch)) == pytest.approx(float((expected * by).sum() / by.sum()))
    assert objective.normaliser(batch) == pytest.approx(float(by.sum()))


@pytest.mark.parametrize("method", ["lora", "cache"])
def test_an_interrupted_run_resumes_bitwise_also_with_the_cache(method, tmp_path, monkeypatch):
    make = {"lora": bed.lora, "cache": lambda: LoRA(rank=2, targets="attention.query[-1:]")}[method]
    options = quick(checkpoint_every=1)
    given = data(train=48, validation=8, test=8)
    whole = fit(bed.model(), given, make(), **options)

    class Stop(Exception):
        pass

    seen = [0]

    def barrier(point):
        seen[0] += point == "renamed"
        if seen[0] == 4:
            raise Stop

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(checkpoint, "_barrier", barrier)
        fit(bed.model(), given, make(), out=tmp_path / "run", **options)
    again = fit(bed.model(), given, make(), out=tmp_path / "run", **options)
    assert (
        bed.same(bed.state_of(whole), bed.state_of(again)) and again.metrics["test"] == whole.metrics["test"]
    )
    assert (whole.metrics["cache"]["bytes"] > 0) == (method == "cache")


def test_words_beyond_the_window_are_called_what_the_card_says(tmp_path, capsys):
    model = bed.model()
    model.preprocess = model.preprocess.with_settings(max_length=6)
    fitted = fit(model, data(), bed.lora(), **quick(progress=True, out=tmp_path / "run"))
    said = capsys.readouterr().err
    assert "rows are cut to 6 tokens" in said and "words are beyond that and are called O unread" in said
    tags = " ".join(LABELS[t] for t in data().train.targets[0])
    assert f"->  {tags}" in said
    (long,) = fitted.predict_proba([("good", "cat") * 5])
    assert long.shape == (10, 4) and (long[4:] == [0, 0, 0, 1]).all() and (long[:4] < 1).all()
    card = tmp_path / "run" / "adaptation" / "card.json"
    assert '"unknown_tag"' in card.read_text()
    card.write_text(card.read_text().replace('"unknown_tag": "O"', '"unknown_tag": "B-PLACE"'))
    with pytest.raises(FileFormatError):
        load_fitted(tmp_path / "run", model)


def test_what_cannot_be_tagged_is_refused():
    from luthier.models import load
    from luthier.train.preflight import check_task

    given = data()
    for base in (host.base("vit"), host.base("plain")):
        with pytest.raises(ModelError, match="reads no texts, which tagging needs"):
            fit(load(base), given, "bitfit", **quick())
    wrong = replace(given, train=Split(given.train.inputs, [t[:-1] for t in given.train.targets]))
    with pytest.raises(DataError, match="Give every word one tag"):
        fit(bed.model(), wrong, bed.lora(), **quick())
    with pytest.raises(OptionError, match="ranks the texts of labels"):
        fit(bed.model("decoder"), given, bed.lora(), **quick(signal="t_few"))
    with pytest.raises(DataError, match="needs 4 tags for each"):
        fit(bed.model(), given, bed.lora(), **quick(head=LinearHead(classes=4, pooling="mean", width=32)))
    check_task(bed.model(), given)
    assert encode(bed.model().preprocess, given.train, given.task).report["beyond"] == 0
