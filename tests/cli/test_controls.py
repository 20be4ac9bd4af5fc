"""Labels of rows on the command line: a column that fit reads, and the control that predict chooses."""

from __future__ import annotations

import json

import pytest

from luthier.cli.main import main
from luthier.host.files import read_card


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    rows = [f"film {i},{'fine' if i % 2 else 'poor'},{'good' if i % 2 else 'bad'}" for i in range(20)]
    path.write_text("\n".join(["input,target,mark", *rows]))
    return path


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "run"
    command = [
        "fit", "--model", "builtin:gpt2", "--data", str(table), "--kind", "text2text", "--attribute", "mark", "--method",
        "control_prefixes", "--set", "labels=good, bad", "length=2", "control_length=2", "--steps", "1", "--out", str(out),
        "--quiet",
    ]  # fmt: skip
    assert main(command) == 0
    return out


def test_the_card_names_the_column_and_rows_bring_it(run, table, capsys):
    assert read_card(run / "adaptation")["terms"][0]["card"]["task"]["attributes"] == ["mark"]
    capsys.readouterr()
    assert main(["eval", str(run), "--data", str(table), "--limit", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 4


def test_predict_chooses_the_control(run, table, tmp_path, capsys):
    assert main(["predict", str(run), "--text", "film 3", "--control", "bad", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    bare = tmp_path / "bare.csv"
    bare.write_text("input\nfilm 3\nfilm 4\n")
    assert main(["predict", str(run), "--data", str(bare), "--control", "good", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    for command, said in (
        (["--data", str(bare)], "no column 'mark'"),
        (["--text", "film 3"], "needs 'attributes'"),
        (["--text", "film 3", "--control", "rude"], "no label is called 'rude'"),
    ):
        assert main(["predict", str(run), *command]) == 2
        assert said in capsys.readouterr().err


def test_the_share_of_outputs_in_each_language(tmp_path, capsys):
    for name, lines in {"en": "the red oak\nthe tin", "xx": "zoq wux\nqax zoq"}.items():
        (tmp_path / f"{name}.txt").write_text(lines)
    rows = ["the oak", "wux zoq", "qax", ""]
    (tmp_path / "said.jsonl").write_text(
        "\n".join(json.dumps({"row": i, "prediction": r}) for i, r in enumerate(rows))
    )
    command = ["instruments", "languages", "--written", str(tmp_path / "said.jsonl")]
    known = [f"--texts={name}={tmp_path / name}.txt" for name in ("en", "xx")]
    assert main([*command, *known, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 4, "shares": {"en": 0.25, "xx": 0.5}}
    assert main([*command, *known]) == 0 and "share of outputs" in capsys.readouterr().out
    assert main([*command, known[0]]) == 2 and "two at least" in capsys.readouterr().err
