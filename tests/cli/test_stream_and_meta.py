"""`luthier stream` and `luthier meta`, from arguments to files, on the embedded T5."""

import json

import pytest

from luthier.cli.main import main
from tests.few import few

MODEL = ["--model", "builtin:t5", "--device", "cpu", "--quiet"]
QUICK = ["--steps", "1", "--batch-size", "8", "--signal", "choices"]


def run(capsys, *arguments):
    code = main([*arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_stream_writes_one_folder_per_task_and_says_each_ones_score(tmp_path, capsys):
    out = tmp_path / "s"
    tasks = [x for n in ("verdicts", "departments") for x in ("--data", few(n, tmp_path / n))]
    given = ["stream", *MODEL, *tasks, "--method", "q_tuning", "--set", "length=2", "shared_length=2", *QUICK]
    code, said, _ = run(capsys, *given, "--out", str(out), "--json")
    assert code == 0
    found = json.loads(said)["tasks"]
    assert [t["task"] for t in found] == ["1 verdicts", "2 departments"]
    assert 0 <= found[0]["own"] <= 1 and found[0]["last"] is None and found[1]["last"] == found[1]["own"]
    assert (out / "001-1-verdicts" / "DONE").is_file() and (out / "002-2-departments" / "DONE").is_file()
    code, said, _ = run(capsys, *given, "--out", str(out))  # done already: told again
    assert code == 0 and "departments" in said


def test_a_start_is_learned_from_text_and_a_fit_begins_with_it(tmp_path, capsys):
    out = tmp_path / "start"
    rows = few("verdicts", tmp_path / "rows", train=120)
    learn = ["meta", *MODEL, "--text", rows, "--set", "length=2", "rank=4", "--out", str(out)]
    small = ["--steps", "1", "--tasks", "1", "--rows", "4", "--ways", "3", "--clusters", "6", "--json"]
    code, said, _ = run(capsys, *learn, *small)
    assert code == 0
    told = json.loads(said)
    assert told["meta"]["rows"] == 4 and told["clusters"] >= 3 and told["last_loss"] > 0
    fit = ["fit", *MODEL, "--data", rows, "--method", "supmer", "--set", "length=2", "rank=4"]
    code, said, _ = run(capsys, *fit, *QUICK, "--after", str(out), "--out", str(tmp_path / "run"), "--json")
    assert code == 0 and json.loads(said)["parameters"] == 2 * 160
    held = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert len(held["after"]) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["meta", "--model", "builtin:llama", "--text", "builtin:verdicts"], "Use an encoder-decoder"),
        (["meta", "--model", "builtin:t5", "--text", "no.txt"], "Cannot read no.txt"),
        (
            ["stream", "--model", "builtin:t5", "--data", "builtin:none", "--method", "q_tuning"],
            "No built-in data",
        ),
    ],
)
def test_what_a_user_can_mend_ends_with_2(arguments, message, tmp_path, capsys):
    code, _, said = run(capsys, *arguments, "--out", str(tmp_path / "x"))
    assert code == 2 and message in said
    assert not (tmp_path / "x").exists()
