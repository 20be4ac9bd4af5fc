"""One adapter for several languages: what is pooled, what trains, and what a user gets from the command."""

import json
from dataclasses import replace

import numpy as np
import pytest

from luthier.cli.main import main
from luthier.data.split import Data, Split
from luthier.data.task import Task
from luthier.errors import DataError, OptionError
from luthier.methods.sparse.parameters import Full
from luthier.recipes.multilingual_adapter import (
    LOW_RESOURCE,
    adapter,
    named_by_language,
    one_adapter,
    pooled,
    probed,
)
from tests.train import train_testbed as bed


def pairs(rows, seed, word):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(["cat", "dog", "red", "blue", "one", "two"], 3)) for _ in range(rows)]
    return Split(texts, [f"{word} is {' '.join(reversed(text.split()))}" for text in texts])


def language(word, seed, kind="retrieval", train=24):
    task = Task(kind=kind, modality="text", input="docstring", label="code")
    parts = [pairs(n, 10 * seed + i, word) for i, n in enumerate((train, 8, 8))]
    return Data(*parts, task=task, name=word)


def languages(kind="retrieval"):
    return {word: language(word, seed, kind) for seed, word in enumerate(("good", "bad", "dull"))}


def quick(**options):
    return {"progress": False, "batch_size": 8, "steps": 3, **options}


def test_pooled_rows_are_so_many_of_each_language_in_the_order_of_the_seed():
    several = languages()
    whole = pooled(several)
    assert (len(whole.train), len(whole.validation), whole.test) == (72, 24, None)
    few = pooled(several, per_language=5, seed=1)
    assert [text.split()[0] for text in few.train.targets] == ["good"] * 5 + ["bad"] * 5 + ["dull"] * 5
    assert few.train.digest == pooled(several, 5, 1).train.digest != pooled(several, 5, 2).train.digest
    for name, at in zip(several, range(0, 15, 5)):
        own = list(several[name].train)
        assert all(few.train[i] in own for i in range(at, at + 5))
    assert len(pooled(several, LOW_RESOURCE).train) == 72  # of which there are fewer


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_one_adapter_summarises_with_every_model_that_writes(kind):
    several, model = languages("text2text"), bed.model(kind)
    made = one_adapter(model, several, width=4, max_new_tokens=4, **quick(steps=1))
    assert set(made.scores) == set(several) and all("rougeL" in scores for scores in made.scores.values())


def test_one_adapter_searches_and_leaves_the_model_as_it_was():
    model, several = bed.model(), languages()
    before = model.fingerprint
    made = one_adapter(model, several, width=4, per_language=10, **quick())
    model.forget_fingerprint()
    assert model.fingerprint == before and made.rows == dict.fromkeys(several, 10)
    per_site = 2 * 4 * 32 + 4 + 32  # down, up and their biases, at two places in each of two blocks
    assert made.share == pytest.approx(4 * per_site / sum(p.numel() for p in model.base.parameters()))
    assert made.scores["bad"] == made.fitted.score(several["bad"].test)
    full = one_adapter(model, several, method=Full(), **quick())
    assert full.share == pytest.approx(1.0) and full.rows["bad"] == 24
    found = {
        p.property: p
        for p in probed(model, {"adapter": made.fitted, "full": full.fitted}, several, layers=(1, 2))
    }
    assert set(found) == {"token", "language"} and set(found["language"].accuracy) == {
        "base",
        "adapter",
        "full",
    }


def test_where_the_adapter_stands():
    names = lambda model, kind: {s.name for s in adapter(model, kind, 4).sites(model.structure)}
    encoder, both = bed.model(), bed.model("encoder-decoder")
    assert len(names(encoder, "retrieval")) == 4
    searching, writing = names(both, "retrieval"), names(both, "text2text")
    assert searching < writing and all(name.startswith("encoder") for name in searching)
    one_adapter(both, languages(), width=4, **quick(steps=1))  # nothing that trains is unread


def test_the_code_by_language():
    several = languages()
    whole = named_by_language(several)
    assert (
        whole.task.labels == tuple(several) and whole.train.targets.tolist() == [0] * 24 + [1] * 24 + [2] * 24
    )
    assert whole.train.inputs[24:48] == several["bad"].train.targets and len(whole.test) == 24
    assert named_by_language(languages("text2text")).train.inputs[:24] == several["good"].train.inputs
    with pytest.raises(DataError, match="test part"):
        named_by_language({n: replace(d, test=None, validation=None) for n, d in several.items()})


def test_what_cannot_be_pooled_is_refused():
    several = languages()
    for odd, word in (
        ({"good": several["good"]}, "two at least"),
        ({**several, "x": language("x", 5, "text2text")}, "one kind"),
        ({**several, "x": bed.data()}, "classification"),
    ):
        with pytest.raises(OptionError, match=word):
            pooled(odd)
    with pytest.raises(OptionError, match="at least 1"):
        pooled(several, 0)


def test_from_arguments_to_scores_and_probes(tmp_path, capsys):
    given = [
        "multilingual",
        "--model",
        "builtin:bert",
        "--device",
        "cpu",
        "--quiet",
        "--width",
        "4",
        "--steps",
        "2",
    ]
    for name, data in languages().items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps({"docstring": q, "code": c}) for q, c in data.train))
        given += ["--data", f"{name}={file}"]
    out = ["--out", str(tmp_path / "run")]
    assert main([*given, *out, "--per-language", "9", "--batch-size", "8", "--probe", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == {"good": 9, "bad": 9, "dull": 9} and 0 < told["share"] < 0.05
    assert set(told["scores"]["bad"]) == {"mrr", "recall@1", "recall@5", "recall@10"}
    assert [p["property"] for p in told["probes"]] == ["token", "language"]
    other = ["--out", str(tmp_path / "lora")]
    assert (
        main([*given, *other, "--low-resource", "--method", "lora", "--set", "rank=2", "--batch-size", "8"])
        == 0
    )
    assert "mrr" in capsys.readouterr().out
    for wrong, word in (
        (["--low-resource", "--per-language", "9"], "one of them"),
        (["--kind", "tagging"], "retrieval or text2text"),
        (["--set", "rank=2"], "--method"),
    ):
        assert main([*given, "--out", str(tmp_path / "x"), *wrong]) == 2
        assert word in capsys.readouterr().err
