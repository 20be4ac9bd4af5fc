"""What each command asks of the rooms below, and what it prints and writes."""

import csv
import io
import json

import pytest
from fake_rooms import TASK, Rooms

from luthier.cli import predict as predict_command
from luthier.cli.main import main

FIT = ["fit", "--model", "builtin:minilm", "--data", "d.csv", "--method", "shift", "--out", "out"]


def test_fit_hands_on_what_was_given_and_leaves_the_rest_to_its_defaults(rooms, method, capsys):
    options = [
        "--set",
        "size=2.5",
        "twice=true",
        "--label",
        "y",
        "--test",
        "t.csv",
        "--epochs",
        "2",
        "--batch-size",
        "8",
    ]
    options += ["--rate", "0.01", "--seed", "3", "--no-cache"]
    assert main([*FIT, *options, "--input", "a,b", "--limit", "100", "--quiet"]) == 0
    assert rooms.calls["load_data"] == (
        ("d.csv",),
        {"input": ("a", "b"), "label": "y", "test": "t.csv", "seed": 3, "limit": 100},
    )
    assert rooms.calls["load"] == (("builtin:minilm",), {"device": "auto", "dtype": "auto"})
    (model, data, chosen), settings = rooms.calls["fit"]
    assert (model, data) == ("model", "data")
    assert chosen == method(size=2.5, twice=True)
    assert settings == {
        "out": "out",
        "seed": 3,
        "epochs": 2.0,
        "batch_size": 8,
        "rate": 0.01,
        "cache": "off",
        "progress": False,
        "checkpointing": False,
        "class_weights": False,
        "resume_anyway": False,
        "shard": False,
    }
    assert "test: accuracy 0.75" in capsys.readouterr().out


def test_fit_refuses_an_unknown_method_or_option_before_it_reads_or_loads(rooms, method, capsys):
    assert main([*FIT, "--set", "sise=2"]) == 2
    assert "no option 'sise'. Did you mean 'size'?" in capsys.readouterr().err
    assert main([*FIT[:6], "shfit", *FIT[7:]]) == 2
    assert "No method is called 'shfit'" in capsys.readouterr().err
    assert rooms.calls == {}


def test_fit_prints_json_without_nan(rooms, method, capsys):
    assert main([*FIT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == {"accuracy": 0.75, "log_loss": None}


def test_eval_reads_data_with_the_adaptations_own_task(rooms, adaptation, capsys):
    assert main(["eval", str(adaptation), "--data", "d.csv", "--label", "y", "--json"]) == 0
    assert rooms.calls["load_split"] == (("d.csv", TASK), {"part": None, "label": "y"})
    assert rooms.calls["load_fitted"] == ((adaptation, "model"), {})
    assert json.loads(capsys.readouterr().out)["metrics"] == {"accuracy": 0.3}
    assert main(["eval", str(adaptation / "adaptation"), "--data", "d.csv", "--limit", "2"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_predict_texts_as_json_with_the_likeliest_labels_first(rooms, adaptation, capsys):
    assert main(["predict", str(adaptation), "--text", "aa", "--text", "b", "--top", "2", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["prediction"] == "=1+1"
    assert list(first["probabilities"]) == ["=1+1", TASK.labels[2]]
    assert second == {
        "row": 2,
        "input": "b",
        "prediction": "no",
        "probability": pytest.approx(0.7),
        "probabilities": {"no": pytest.approx(0.7), TASK.labels[2]: pytest.approx(0.2)},
    }


def test_predict_on_the_terminal_shows_hostile_labels_as_text(rooms, adaptation, capsys):
    assert main(["predict", str(adaptation), "--text", "[red]x[/red]\x1b[2J"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]x[/red]" in out
    assert "[/b] 0." in out


def test_predict_writes_csv_that_no_spreadsheet_evaluates(rooms, adaptation, tmp_path, capsys):
    rooms.rows.inputs = ["=HYPERLINK(1)", "bb"]
    path = tmp_path / "p.csv"
    assert main(["predict", str(adaptation), "--data", "d.csv", "--out", str(path)]) == 0
    assert rooms.calls["load_split"] == (("d.csv", TASK), {"part": None, "labelled": False})
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert rows[0]["input"] == "'=HYPERLINK(1)"
    assert rows[1]["prediction"] == "'=1+1"
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "@"))]
    assert "2 predictions written" in capsys.readouterr().err


def test_predict_writes_jsonl(rooms, adaptation, tmp_path):
    path = tmp_path / "p.jsonl"
    assert main(["predict", str(adaptation), "--data", "d.csv", "--out", str(path), "--limit", "2"]) == 0
    assert [json.loads(x)["row"] for x in path.read_text().splitlines()] == [1, 2]
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["p.jsonl"]


def test_predict_reads_lines_of_standard_input(rooms, adaptation, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("first line\n\nsecond\n"))
    assert main(["predict", str(adaptation), "--json"]) == 0
    assert [r["input"] for r in json.loads(capsys.readouterr().out)] == ["first line", "second"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["predict", str(adaptation)]) == 2
    assert "nothing to predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("modality", "text", "said"),
    [("image", "a", "reads image rows, not texts"), ("pair", "only one", "Text 1 is no pair")],
)
def test_predict_refuses_texts_that_do_not_fit(modality, text, said, monkeypatch, adaptation, capsys):
    from types import SimpleNamespace

    Rooms(monkeypatch, SimpleNamespace(**{**vars(TASK), "modality": modality}))
    assert main(["predict", str(adaptation), "--text", text]) == 2
    assert said in capsys.readouterr().err


def test_predict_pairs_regression_and_multilabel():
    from types import SimpleNamespace

    from fake_rooms import Fitted

    pair = Fitted(SimpleNamespace(**{**vars(TASK), "modality": "pair", "kind": "regression", "labels": ()}))
    inputs = predict_command.as_inputs(["a\tb"], pair.task)
    assert predict_command.predictions(pair, inputs, None) == [
        {"row": 1, "input": "a", "input_2": "b", "prediction": 2.0}
    ]
    several = Fitted(SimpleNamespace(**{**vars(TASK), "kind": "multilabel"}))
    (record,) = predict_command.predictions(several, ["aa"], 1)
    assert record["prediction"] == ["=1+1"]
    assert "probability" not in record


def card_of(*bases):
    return json.dumps({"terms": [{"card": {"about": {"base": base}}} for base in bases]})


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (card_of("../../etc"), "say which it is with --model"),
        (card_of("someone/model"), "the card names 'someone/model'"),
        (card_of("builtin:minilm", "builtin:other"), "say which it is with --model"),
        (card_of(), "say which it is with --model"),
        (card_of(7), "say which it is with --model"),
        (card_of([1]), "is not the card of an adaptation"),
        ("{}", "is not the card of an adaptation"),
        ("[]", "is not the card of an adaptation"),
        ("{", "is not the card of an adaptation"),
        ("[" * 100_000, "is not the card of an adaptation"),
        ('{"terms": [{"card": {"about": [1]}}]}', "is not the card of an adaptation"),
    ],
)
def test_a_card_alone_makes_nothing_but_an_embedded_model_load(card, said, rooms, adaptation, capsys):
    (adaptation / "adaptation" / "card.json").write_text(card)
    assert main(["predict", str(adaptation), "--text", "a"]) == 2
    assert said in capsys.readouterr().err
    assert "load" not in rooms.calls
    assert main(["predict", str(adaptation), "--text", "a", "--model", "mine"]) == 0
    assert rooms.calls["load"][0] == ("mine",)


def test_a_folder_without_an_adaptation_says_what_it_is(rooms, tmp_path, capsys):
    assert main(["predict", str(tmp_path), "--text", "a"]) == 2
    assert "holds no adaptation" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{}")
    assert main(["predict", str(tmp_path), "--text", "a"]) == 2
    assert "has not finished" in capsys.readouterr().err
    (tmp_path / "run.json").unlink()
    (tmp_path / "runs" / "lora" / "adaptation").mkdir(parents=True)
    (tmp_path / "runs" / "lora" / "adaptation" / "card.json").write_text("{}")
    assert main(["predict", str(tmp_path), "--text", "a"]) == 2
    assert "It holds runs: runs/lora" in capsys.readouterr().err
