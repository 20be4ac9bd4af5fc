"""`luthier testbed`: what it lists, builds and recomputes, and how it ends."""

import json

import pytest

from luthier.cli.main import main
from luthier.models.testbeds import card, corpus, measures, texts


@pytest.fixture
def small(monkeypatch):
    """Measurements on a handful of instances, and little to read before."""
    monkeypatch.setattr(measures, "QUICK", 3)
    monkeypatch.setattr(measures, "TEXTS_QUICK", 5)
    monkeypatch.setattr(corpus, "training", corpus.held_out_texts)
    forget()
    yield
    forget()


def forget():
    texts.documentation.cache_clear()
    measures.trigram.cache_clear()


def test_list_names_every_installed_testbed_with_its_figures(capsys):
    assert main(["testbed", "list", "--json"]) == 0
    listed = {made["name"]: made for made in json.loads(capsys.readouterr().out)}
    assert {"llama", "t5"} <= set(listed)
    assert listed["llama"]["skills"]["copy"] > listed["llama"]["skills"]["copy, nearest"]
    assert main(["testbed", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in listed)


def test_build_writes_a_folder_that_measure_reads(small, tmp_path, capsys):
    out = tmp_path / "mine"
    assert main(["testbed", "build", "gpt2", "--steps", "2", "--quick", "--out", str(out), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["steps"] == 2 and made["sha256"] == card.read(out).sha256
    assert main(["testbed", "measure", str(out), "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"] == {**made["held_out"], **made["skills"]}
    assert found["other_versions"] == {}


def test_measure_says_which_versions_are_others(small, tmp_path, capsys):
    out = tmp_path / "mine"
    assert main(["testbed", "build", "gpt2", "--steps", "1", "--quick", "--out", str(out), "--quiet"]) == 0
    stored = card.read(out)
    stored.versions["python"] = "3.9.0"
    stored.write(out)
    capsys.readouterr()
    assert main(["testbed", "measure", str(out), "--quick"]) == 0
    assert "measured with python 3.9.0" in capsys.readouterr().err


def test_measure_fails_where_a_figure_is_not_the_cards(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measures, "INSTANCES", 3)
    monkeypatch.setattr(measures, "held_out", lambda quick=False: list(measures.corpus.held_out_texts())[:5])
    out = tmp_path / "mine"
    assert main(["testbed", "build", "gpt2", "--steps", "1", "--quick", "--out", str(out), "--quiet"]) == 0
    assert main(["testbed", "measure", str(out)]) == 0
    stored = card.read(out)
    stored.held_out["bits per byte"] -= 0.5
    stored.write(out)
    capsys.readouterr()
    assert main(["testbed", "measure", str(out)]) == 1
    assert "bits per byte" in capsys.readouterr().err


def test_an_unknown_testbed_is_a_line_and_code_2(capsys):
    assert main(["testbed", "measure", "lama"]) == 2
    assert "llama" in capsys.readouterr().err
    assert main(["testbed", "build", "lama"]) == 2
    assert "Did you mean" in capsys.readouterr().err
