"""`luthier fit --budget params=...`: a method as large as asked, on the command line."""

from __future__ import annotations

import pytest

from luthier.cli.main import main
from luthier.host.files import read_card


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    rows = [f"row {i} is {'good' if i % 2 else 'bad'},{i % 2}" for i in range(24)]
    path.write_text("\n".join(["text,label", *rows]))
    return path


def fit(table, out, *more):
    command = [
        "fit",
        "--model",
        "builtin:minilm",
        "--data",
        str(table),
        "--method",
        "lora",
        "--out",
        str(out),
    ]
    return main([*command, "--steps", "1", "--batch-size", "4", "--quiet", *more])


def test_a_fit_within_a_budget(table, tmp_path, capsys):
    assert fit(table, tmp_path / "run", "--budget", "params=20k") == 0
    assert "lora: rank=2 trains 18,432 parameters" in "".join(capsys.readouterr())
    assert read_card(tmp_path / "run" / "adaptation")["terms"][0]["card"]["method"]["rank"] == 2


@pytest.mark.parametrize(
    ("budget", "says"),
    [("params=1k", "above the budget of 1,000"), ("epochs=2", "for parameters, not for epochs")],
)
def test_what_cannot_be_met_is_refused(table, tmp_path, capsys, budget, says):
    assert fit(table, tmp_path / "run", "--budget", budget) != 0
    assert says in "".join(capsys.readouterr()) and not (tmp_path / "run").exists()
