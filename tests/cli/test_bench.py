"""`luthier bench`: finding the files, the peer and the stored figures; and that every file runs, at sizes that say nothing."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from luthier.cli import bench
from luthier.cli.main import main

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with two files: one measures, the other wants data."""
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "timing.py").write_text("")
    (folder / "quick.py").write_text(
        '"""Quick.\n\npython bench/quick.py\n"""\n'
        "import json, pathlib, sys\n"
        "assert sys.argv[1:] == ['--threads', '3'], sys.argv\n"
        "import luthier\n"
        "out = pathlib.Path(__file__).parent / 'results'\n"
        "out.mkdir(exist_ok=True)\n"
        "figure = dict(name='it', ours=1.0, peer=2.0, peer_version='peft 1', ratio=0.5, limit=0.6, unit='seconds', holds=False)\n"
        "(out / 'quick.json').write_text(json.dumps({'figures': [figure]}))\n"
        "print('running')\n"
    )
    (folder / "wanting.py").write_text(
        '"""Wanting.\n\npython bench/wanting.py DATA [--more]\n"""\nraise SystemExit(4)\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "find_spec", lambda name: name)
    return tmp_path


def test_a_file_is_run_and_its_figures_shown_as_json(checkout, capfd):
    assert main(["bench", "--threads", "3", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == [
        {
            "name": "it",
            "ours": 1.0,
            "peer": 2.0,
            "peer_version": "peft 1",
            "ratio": 0.5,
            "limit": 0.6,
            "unit": "seconds",
            "holds": True,
        }
    ]
    assert "running" in err and "left out, because they want --data FOLDER: wanting" in err


def test_stored_figures_are_judged_again(checkout, capsys):
    assert main(["bench", "quick", "--stored"]) == 2
    assert "Nothing is stored of quick" in capsys.readouterr().err
    assert main(["bench", "quick", "--threads", "3"]) == 0
    path = checkout / "bench" / "results" / "quick.json"
    path.write_text(path.read_text().replace("0.5", "0.7"))
    assert main(["bench", "quick", "--stored"]) == 1
    assert "NO" in capsys.readouterr().out
    path.write_text("{}")
    assert main(["bench", "quick", "--stored"]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_what_cannot_run_says_what_to_do(checkout, capfd, monkeypatch):
    assert main(["bench", "quik"]) == 2
    assert "Did you mean 'quick'?" in capfd.readouterr().err
    assert main(["bench", "wanting"]) == 2
    assert "Add --data FOLDER" in capfd.readouterr().err
    assert main(["bench", "wanting", "--data", "."]) == 2
    assert "ended with 4" in capfd.readouterr().err
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert main(["bench", "quick"]) == 2
    assert "pip install -e .[bench]" in capfd.readouterr().err


def test_without_a_checkout_the_error_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "a" / "b" / "c" / "bench.py"))
    assert main(["bench"]) == 2
    assert "Go to a checkout" in capsys.readouterr().err


def test_every_stored_figure_is_read():
    for path in (BENCH / "results").glob("*.json"):
        assert (BENCH / f"{path.stem}.py").is_file()
        for figure in bench.read(path):
            assert set(bench.SHOWN) <= set(figure)


def test_the_files_that_want_data_are_known():
    wanting = {p.stem for p in BENCH.glob("*.py") if p.stem != "timing" and bench.wants_data(p)}
    assert wanting == {"trec_whole_job", "memory_prediction"}


FILES = ["training_step", "saved_activations", "merge_cycles", "many_adaptations", "frozen_prefix_epochs"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_every_file_runs(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft", reason="the peer is an extra: pip install -e .[bench]")
    import torch

    monkeypatch.syspath_prepend(str(BENCH))
    threads = torch.get_num_threads()
    try:
        result = importlib.import_module(name).main(["--smoke", "--threads", "1", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
        for module in (*FILES, "timing"):
            sys.modules.pop(module, None)
    assert bench.read(tmp_path / f"{name}.json") == result["figures"]
    assert len({f["name"] for f in result["figures"]}) == len(result["figures"]) > 0
    if name in ("saved_activations", "merge_cycles"):  # these do not depend on the machine
        small = [
            f for f in result["figures"] if not f["name"].startswith("saved by")
        ]  # others' are on the width
        assert small and all(f["holds"] for f in small)
