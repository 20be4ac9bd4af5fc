"""`luthier verbalise`, a fit on what it writes, and `luthier instruments knowledge` on what was fitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli.main import main
from tests.train import train_testbed as bed


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    model = bed.model("encoder-decoder")
    model.base.save_pretrained(folder)
    bed.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def kb(tmp_path):
    path = tmp_path / "kb.csv"
    path.write_text("name,food,area\ncat,red,good\ndog,blue,bad\n", encoding="utf-8")
    return str(path)


def written(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_from_a_table_to_what_was_memorised(t5, kb, tmp_path, capsys):
    facts, pairs, run = str(tmp_path / "facts"), str(tmp_path / "pairs.jsonl"), str(tmp_path / "run")
    told = [
        "--entity", "name", "--template", "food={entity} is very {value}", "--mask", "not", "--pairs", pairs,
        "--question", "{entity}", "--answer", "was {value}",
    ]  # fmt: skip
    assert main(["verbalise", kb, "--out", facts, *told, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["facts"] == said["pairs"] == 4 and said["rows"] == {"atomic": 4, "composite": 4}
    rows = written(f"{facts}/train.jsonl")
    assert rows[0] == {"input": "cat is very not", "target": "cat is very red"}
    assert len(rows) == 8 and len(written(f"{facts}/test.jsonl")) == 4
    assert written(pairs)[0] == {"context": "cat", "right": "was red", "wrong": "was blue"}
    fit = ["fit", "--model", t5, "--data", facts, "--kind", "text2text", "--method", "knowledge_adapter"]
    assert main([*fit, "--out", run, "--steps", "2", "--quiet"]) == 0
    capsys.readouterr()
    asked = ["instruments", "knowledge", run, "--model", t5, "--pairs", pairs]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["the model alone", run] and all(v["pairs"] == 4 for v in found.values())
    assert found[run]["right"] != found["the model alone"]["right"]
    assert main(asked) == 0
    assert "0.5 is chance" in capsys.readouterr().err
    fused = str(tmp_path / "fused")
    fit[fit.index("knowledge_adapter")] = "knowledge_fusion"
    assert main([*fit, "--member", f"kb={run}", "--out", fused, "--steps", "2", "--quiet",
                 "--set", "tuning=lora", "tuning.rank=2"]) == 0  # fmt: skip
    card = json.loads((Path(fused) / "adaptation" / "card.json").read_text(encoding="utf-8"))
    assert card["terms"][0]["card"]["method"]["tuning"]["rank"] == 2
    capsys.readouterr()
    asked.insert(2, fused)
    assert main([*asked, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["the model alone", fused, run]


def test_what_it_refuses(kb, tmp_path, capsys):
    out = ["--out", str(tmp_path / "facts")]
    assert main(["verbalise", kb, *out]) == 2
    assert "--entity NAME" in capsys.readouterr().err
    assert main(["verbalise", kb, *out, "--entity", "name", "--template", "drink={entity} {value}"]) == 2
    assert "Slots: food, area" in capsys.readouterr().err
    assert main(["verbalise", kb, "--out", str(tmp_path), "--entity", "name"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert not (tmp_path / "facts").exists()
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("context,right,wrong\na,b,c\n")
    assert main(["instruments", "knowledge", "--pairs", str(pairs)]) == 2
    assert "Give a run's folder, or --model" in capsys.readouterr().err
