"""`luthier search`, from arguments to files, on the embedded vision transformer."""

import json

import pytest

from luthier.cli.main import main

GIVEN = ["--model", "builtin:vit", "--data", "builtin:digits", "--limit", "60", "--device", "cpu", "--quiet"]
QUICK = ["--steps", "2", "--retrain-steps", "2", "--rounds", "2", "--population", "4", "--batch-size", "8"]


@pytest.mark.parametrize(("method", "options"), [("glora", ["rank=2"]), ("noah", ["size=2"])])
def test_a_search_leaves_an_adaptation_that_can_be_evaluated(method, options, tmp_path, capsys):
    out = str(tmp_path / "found")
    given = [
        "search",
        *GIVEN,
        *QUICK,
        "--method",
        method,
        "--set",
        *options,
        "--budget",
        "params=2%",
        "--out",
        out,
    ]
    assert main([*given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["parameters"] <= told["allowed"] and told["candidates"] == 8 and told["test"]
    assert main(given) == 0  # done already: told again
    assert f"{told['parameters']:,} of" in capsys.readouterr().out
    assert main(["eval", out, "--data", "builtin:digits", "--limit", "60", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_what_a_user_can_mend_ends_with_2(tmp_path, capsys):
    given = ["search", *GIVEN, "--budget", "params=1%", "--out", str(tmp_path / "x")]
    assert main([*given, "--method", "lora"]) == 2
    assert "Choose glora or noah" in capsys.readouterr().err
