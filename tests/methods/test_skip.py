"""SKIP: the plan on a real model, what stays, and the smaller model that is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import luthier as lt
from luthier.cli.main import main
from luthier.data.split import Data, Split
from luthier.data.task import Task
from luthier.errors import ModelError, OptionError, RunError
from luthier.methods.prompts.skip import Skip
from luthier.train.smaller import numbers, write_smaller

SETTINGS = {"steps": 8, "batch_size": 4, "progress": False}


def data(n=12):
    words = ["red apples", "blue skies", "a red coat", "the blue sea"]
    split = Split([words[i % 4] for i in range(n)], np.array([i % 2 for i in range(n)]))
    task = Task(kind="classification", modality="text", input="text", label="label", labels=("red", "blue"), metric="accuracy")  # fmt: skip
    return Data(split, split, split, task, "colours")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    out = tmp_path_factory.mktemp("skip") / "run"
    model = lt.load("builtin:bert", device="cpu")
    return lt.fit(model, data(), Skip(length=3, cut=0.75, scored=2), out=out, **SETTINGS), out


def test_the_plan_cuts_the_lowest_units_of_every_layer_and_goes_on(fitted):
    found, out = fitted
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    phases = [line["phase"] for line in lines if "loss" in line]
    assert phases == ["train"] * 6 + ["retrain"] * 2
    for at in found.adaptation.at(1):
        kept = at.values["kept"]
        assert len(kept) == at.site.in_features // 4 and (kept.diff() > 0).all()
    assert len({tuple(at.values["kept"].tolist()) for at in found.adaptation.at(1)}) > 1


def test_the_smaller_model_says_the_same_and_the_base_is_untouched(fitted):
    found, _ = fitted
    before = {k: v.clone() for k, v in found.model.base.state_dict().items()}
    small = found.smaller()
    texts = data().test.inputs
    assert np.abs(small.predict_proba(texts) - found.predict_proba(texts)).max() < 1e-5
    assert numbers(small.model) < numbers(found.model)
    assert all(torch.equal(before[k], v) for k, v in found.model.base.state_dict().items())


def test_the_command_writes_a_model_that_loads_as_any(fitted, tmp_path, capsys):
    found, out = fitted
    assert main(["cut", str(out), "--out", str(tmp_path / "small"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["left"] < report["parameters"] == numbers(found.model)
    model = lt.load(tmp_path / "small" / "model", device="cpu")
    assert numbers(model) == report["left"]
    again = lt.load_adaptation(tmp_path / "small" / "adaptation", model)
    texts = data().test.inputs
    assert np.abs(again.predict_proba(texts) - found.predict_proba(texts)).max() < 1e-5
    with pytest.raises(RunError, match="exists"):
        write_smaller(found, tmp_path / "small")


def test_heads_are_cut_too_and_a_configuration_that_cannot_say_so_is_refused(tmp_path):
    model = lt.load("builtin:bert", device="cpu")
    found = lt.fit(model, data(), Skip(length=3, cut=0.0, cut_heads=0.5, scored=2), **SETTINGS)
    sites = {at.site.role for at in found.adaptation.at(1)}
    assert sites == {"attention"}
    texts = data().test.inputs
    assert np.abs(found.smaller().predict_proba(texts) - found.predict_proba(texts)).max() < 1e-5
    with pytest.raises(ModelError, match="Cut no heads"):
        write_smaller(found, tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_the_control_draws_units_and_nothing_to_cut_is_refused():
    model = lt.load("builtin:bert", device="cpu")
    kept = []
    for by in ("random", "attribution"):
        made = lt.fit(model, data(), Skip(length=3, by=by, scored=2), seed=1, **SETTINGS)
        kept.append([at.values["kept"].tolist() for at in made.adaptation.at(1)])
    assert kept[0] != kept[1] and [len(k) for k in kept[0]] == [len(k) for k in kept[1]]
    with pytest.raises(OptionError, match="nothing to cut"):
        Skip(cut=0).parts()
