"""MiniLM with a classification head, to peft and back, in Python and on the command line.

peft has no place for a linear head on mean pooling: the body is its adapter, the head lies beside it.
"""

import importlib
import json
import warnings

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt
from luthier.cli.main import main
from luthier.convert import from_peft, to_peft
from luthier.data.task import Task
from luthier.errors import FileFormatError, ModelError, OptionError
from luthier.host import Adaptation, files
from luthier.methods.heads import LinearHead
from luthier.methods.low_rank.lora import LoRA
from luthier.models.model import Model
from luthier.train.fitted import preprocess_card
from tests.host import bed

TEXTS = ["Return the absolute path.", "Open a socket to the given address and wait.", "x"]


@pytest.fixture(scope="module")
def model():
    return lt.load("builtin:minilm", device="cpu")


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """The folder of an adaptation as fit leaves it."""
    folder = tmp_path_factory.mktemp("run") / "adaptation"
    method = LoRA(rank=4, targets="*attention.query | *attention.value | mlp.up")
    made = bed.shaken(Adaptation.new(method, model.base, head=LinearHead(classes=3, width=384)), 0.02)
    task = Task(
        kind="classification", modality="text", labels=("os", "net", "io"), input="text", label="label"
    )
    made.task, made.preprocess = task.model_dump(mode="json"), preprocess_card(model)
    made.about = {"base": "builtin:minilm"}
    files.save(made, folder, model.fingerprint)
    return folder


@pytest.fixture(scope="module")
def fitted(run, model):
    return lt.load_adaptation(run, model)


@torch.no_grad()
def by_peft(folder, model):
    """Probabilities of the texts: peft's body, and the head that lies beside it, as the README of the folder says."""
    import copy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = peft.PeftModel.from_pretrained(copy.deepcopy(model.base), str(folder)).eval()
    x = model.preprocess.collate(model.preprocess.encode(TEXTS))
    hidden = body(**x).last_hidden_state
    mask = x["attention_mask"][:, :, None].float()
    head = load_file(folder / "luthier_head.safetensors")
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return torch.softmax(pooled @ head["W"].T + head["b"], -1).numpy()


def test_the_body_is_pefts_and_the_head_lies_beside_it(fitted, model, tmp_path):
    notes = fitted.export(tmp_path / "a")
    assert len(notes) == 1 and "output head (linear on mean pooling" in notes[0]
    p = fitted.predict_proba(TEXTS)
    assert np.abs(by_peft(tmp_path / "a", model) - p).max() < 1e-5
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["task_type"], config.get("modules_to_save")) == ("FEATURE_EXTRACTION", None)
    back = from_peft(tmp_path / "a", model)
    assert str(tmp_path) not in (tmp_path / "a" / "luthier.json").read_text()
    assert back.task == fitted.adaptation.task and back.head == fitted.adaptation.head
    files.save(back, tmp_path / "b", model.fingerprint)
    again = lt.load_adaptation(tmp_path / "b", model)
    assert np.abs(again.predict_proba(TEXTS) - p).max() < 1e-6
    with pytest.raises(OptionError, match="to='peft'"):
        fitted.export(tmp_path / "c", to="elsewhere")


def test_without_the_head_the_body_is_opened_by_itself(fitted, model, tmp_path):
    fitted.export(tmp_path / "a")
    for name in ("luthier.json", "luthier_head.safetensors"):
        (tmp_path / "a" / name).unlink()
    body = from_peft(tmp_path / "a", model)
    assert body.task is None and body.head is None
    files.save(body, tmp_path / "b", model.fingerprint)
    alone = lt.load_adaptation(tmp_path / "b", model)
    assert isinstance(alone, Adaptation)
    x = model.preprocess.collate(model.preprocess.encode(TEXTS))
    with torch.no_grad():
        bare = model.base(**x).last_hidden_state
        with model.attached(alone):
            one = model.base(**x).last_hidden_state
        with model.attached(fitted):
            two = model.base(**x).last_hidden_state
    assert (one - two).abs().max() < 1e-5 < (one - bare).abs().max()


def test_heads_of_a_sum_are_refused(fitted, model, tmp_path):
    with pytest.raises(ModelError, match="heads of a sum"):
        (0.5 * fitted).export(tmp_path / "a")


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda e: e.update(base="0" * 64), "another base"),
        (lambda e: e.update(format=2), "another format"),
        (lambda e: e.update(more=1), "unknown keys"),
        (lambda e: e["head"].update({"is": "lora"}), "head|layouts|missing|options"),
        (lambda e: e["head"].update({"classes": 4}), "expected"),
        (lambda e: e["head"].update({"classes": 10**9}), "bytes"),
        (lambda e: e["task"].update({"kind": "dance"}), "Not a task"),
        (lambda e: e.update(head=None), "luthier_head"),
    ],
)  # fmt: skip
def test_a_changed_head_is_refused(change, words, fitted, model, tmp_path):
    fitted.export(tmp_path / "a")
    path = tmp_path / "a" / "luthier.json"
    extra = json.loads(path.read_text())
    change(extra)
    path.write_text(json.dumps(extra))
    with pytest.raises(FileFormatError, match=words):
        from_peft(tmp_path / "a", model)


def test_a_damaged_head_is_refused(fitted, model, tmp_path):
    fitted.export(tmp_path / "a")
    file = tmp_path / "a" / "luthier_head.safetensors"
    head = load_file(file)
    save_file({**head, "b": head["b"] * float("nan")}, file)
    with pytest.raises(FileFormatError, match="NaN"):
        from_peft(tmp_path / "a", model)
    save_file({"W": head["W"]}, file)
    with pytest.raises(FileFormatError, match="missing"):
        from_peft(tmp_path / "a", model)
    file.unlink()
    with pytest.raises(FileFormatError, match="can't be read"):
        from_peft(tmp_path / "a", model)


def test_a_language_models_adapter_is_ready_to_write(tmp_path):
    made = bed.shaken(Adaptation.new(LoRA(rank=2), bed.base("llama")))
    model = Model(bed.base("llama"), "llama", kind="decoder", generates=True)
    to_peft(made, model, tmp_path / "a")
    back = from_peft(tmp_path / "a", model)
    assert back.task["kind"] == "text2text" and back.about["base"] == "llama"


# -- the command line


@pytest.fixture
def loaded(model, monkeypatch):
    """Commands get the model that is loaded already."""
    asked = []
    module = importlib.import_module("luthier.models.load")  # the package's attribute is the function
    monkeypatch.setattr(module, "load", lambda name, **_: asked.append(name) or model)
    return asked


def test_there_and_back_on_the_command_line(loaded, run, fitted, tmp_path, capsys):
    assert main(["convert", "--to", "peft", str(run), "--out", str(tmp_path / "a"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    sizes = (4 * 6 * (2 * (384 + 384) + (384 + 1536)), "LORA", "peft")
    assert (told["parameters"], told["kind"], told["to"]) == sizes and len(told["notes"]) == 1
    assert main(["convert", "--from", "peft", str(tmp_path / "a"), "--model", "builtin:minilm", "--out", str(tmp_path / "b")]) == 0  # fmt: skip
    assert "LORA, 82,944 parameters" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "b"), "--text", TEXTS[0], "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert set(loaded) == {"builtin:minilm"}
    assert row["probability"] == pytest.approx(float(fitted.predict_proba(TEXTS[:1]).max()), abs=1e-6)


def test_a_body_without_a_task_says_so(loaded, run, tmp_path, capsys):
    assert main(["convert", "--to", "peft", str(run), "--out", str(tmp_path / "a")]) == 0
    assert "note: peft adapts the body only" in capsys.readouterr().err
    for name in ("luthier.json", "luthier_head.safetensors"):
        (tmp_path / "a" / name).unlink()
    arguments = ["--model", "builtin:minilm", "--out", str(tmp_path / "b")]
    assert main(["convert", "--from", "peft", str(tmp_path / "a"), *arguments]) == 0
    assert "carries no task" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "b"), "--text", "x"]) == 2
    assert "carries no task" in capsys.readouterr().err
    again = ["convert", "--to", "peft", str(tmp_path / "b"), "--out", str(tmp_path / "c")]
    assert main(again) == 0  # its card names the embedded base


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["x", "--out", "y"], "--to peft or --from peft"),
        (["--to", "peft", "--from", "peft", "x", "--out", "y"], "one of them"),
        (["--to", "gguf", "x", "--out", "y"], "'gguf' is not a layout"),
        (["--to", "peft", "x"], "--out"),
        (["--from", "peft", "--out", "y"], "folder to read"),
        (["--from", "peft", "x", "--out", "y"], "--model"),
        (["--to", "peft", "x", "--out", "y", "--drop", "bias"], "--drop goes with --from"),
        (["--to", "peft", "nowhere", "--out", "y"], "no folder nowhere"),
        (["--from", "peft", "nowhere", "--model", "builtin:minilm", "--out", "y"], "no folder nowhere"),
    ],
)  # fmt: skip
def test_commands_that_cannot_be_done_name_the_fix(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
