"""What a user can get wrong, through the command line: one line that names the fix, exit code 2, and no folder half-written."""

import csv
import json
import os
import pickle

import pytest
from e2e_testbed import compare, fit, predict, save_bert, save_rows, sentences, write

from luthier.cli.main import main

ODD = ("[/b]", "</script>", "=1+1")


# -- data


def test_a_missing_column(bert, rows, tmp_path, refused):
    refused(fit(bert, rows, tmp_path / "out", "--label", "stars"), "stars", "text", "label")
    refused(fit(bert, rows, tmp_path / "out", "--input", "review", "--label", "label"), "review", "text")


@pytest.mark.parametrize("columns", [("text", "label"), ("words", "what")])
def test_one_class_only(columns, bert, tmp_path, refused):
    data = save_rows(tmp_path / "d.csv", labels=("good", "good"), columns=columns)
    more = ["--input", columns[0], "--label", columns[1], "--kind", "classification"]
    refused(fit(bert, data, tmp_path / "out", *more), "good")
    refused(compare(bert, data, tmp_path / "out", *more), "good")


@pytest.mark.parametrize("content", ["", "\n", "text,label\n", "\ufeff", "text,label\n,\n"])
@pytest.mark.parametrize("name", ["d.csv", "d.jsonl"])
def test_an_empty_file(content, name, bert, tmp_path, refused):
    data = write(tmp_path / name, content)
    refused(fit(bert, data, tmp_path / "out"), name)
    refused(compare(bert, data, tmp_path / "out"), name)


def test_no_such_data(bert, tmp_path, refused):
    refused(fit(bert, tmp_path / "none.csv", tmp_path / "out"), "none.csv")
    write(tmp_path / "d.parquet", "not parquet")
    refused(fit(bert, tmp_path / "d.parquet", tmp_path / "out"), "d.parquet")
    (tmp_path / "d.csv").write_bytes(b"text,label\n\xff\xfe\x00\x01\x02,good\n")
    refused(fit(bert, tmp_path / "d.csv", tmp_path / "out"), "d.csv")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "1e39"])
def test_values_that_are_not_finite(value, bert, tmp_path, refused):
    text = "text,label\n" + "".join(f"{s},{i / 7:.3f}\n" for i, (s, _) in enumerate(sentences(30)))
    data = write(tmp_path / "d.csv", text.replace(",0.714\n", f",{value}\n"))
    refused(fit(bert, data, tmp_path / "out", "--kind", "regression"), "label")


# -- models, methods, options


def test_an_unknown_model(rows, tmp_path, refused, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(fit(tmp_path / "nowhere", rows, tmp_path / "out"), "nowhere")
    refused(fit("builtin:minilmm", rows, tmp_path / "out"), "minilm")
    (tmp_path / "empty").mkdir()
    refused(fit(tmp_path / "empty", rows, tmp_path / "out"), "config.json")


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("lorra", [], ["lorra", "lora"]),
        ("", [], ["method"]),
        ("../lora", [], ["method"]),
        ("lora", ["rnak=4"], ["rnak", "rank"]),
        ("lora", ["rank=four"], ["rank", "four"]),
        ("lora", ["rank=1.5"], ["rank"]),
        ("lora", ["rank=0"], ["rank"]),
        ("lora", ["rank=-1"], ["rank"]),
        ("lora", ["rank="], ["rank"]),
        ("lora", ["rank=99999999999999999999"], ["rank"]),
        ("lora", ["targets=qeury"], ["qeury"]),
        ("lora", ["targets=attention.query["], ["attention.query["]),
        ("lora", ["start=pisa"], ["pisa"]),
        ("xprompt", ["pieces=5"], ["pieces"]),
        ("xprompt", ["keep_tokens=2"], ["keep_tokens"]),
        ("prompt_tuning", ["length=400"], ["400"]),
        ("last_layers", ["layers=9"], ["layers"]),
    ],
)
def test_a_method_or_an_option_that_is_none(method, options, words, bert, rows, tmp_path, refused):
    given = ["--set", *options] if options else []
    refused(fit(bert, rows, tmp_path / "out", *given, method=method), *words)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--epochs", "many"], "--epochs"),
        (["--epochs", "0"], "epochs"),
        (["--epochs", "nan"], "epochs"),
        (["--epochs", "inf"], "epochs"),
        (["--rate", "nan"], "rate"),
        (["--rate", "inf"], "rate"),
        (["--rate", "0"], "rate"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "2.5"], "--batch-size"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**70)], "seed"),
        (["--precision", "fp8"], "fp8"),
        (["--device", "gpu7"], "gpu7"),
        (["--dtype", "int3"], "int3"),
        (["--kind", "clasification"], "clasification"),
        (["--limit", "1"], "rows"),
        (["--colour"], "--colour"),
    ],
)
def test_an_option_of_the_command_that_means_nothing(given, word, bert, rows, tmp_path, refused):
    refused(fit(bert, rows, tmp_path / "out", *given), word)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"methods": "lorra"}, "lora"),
        ({"methods": "lora,,lora"}, "empty"),
        ({"methods": "lora:rank=four"}, "rank"),
        ({"methods": "lora:rnak=4"}, "rank"),
        ({"methods": "lora,lora"}, "same"),
        ({"more": ["--budget", "parms=1%"]}, "parms"),
        ({"more": ["--budget", "params=-1%"]}, "params"),
        ({"more": ["--budget", "epochs=nan"]}, "epochs"),
        ({"more": ["--seeds", "0"]}, "seeds"),
        ({"more": ["--epochs", "inf"]}, "epochs"),
    ],
)
def test_a_comparison_that_means_nothing(given, word, bert, rows, tmp_path, refused):
    more = given.get("more", [])
    refused(compare(bert, rows, tmp_path / "out", *more, methods=given.get("methods", "lora:rank=2")), word)


# -- adaptations of others


def card(run, change):
    path = run / "adaptation" / "card.json"
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


def tensors(run, change):
    """Other content, under the digest and size that fit it."""
    import hashlib

    path = run / "adaptation" / "tensors.safetensors"
    path.write_bytes(change(path.read_bytes()))
    data = path.read_bytes()
    card(run, lambda c: c.update(tensors={"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}))


def retensored(change):
    from safetensors.torch import load, save

    return lambda data: save(change(load(data)))


def header(entries):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return lambda data: len(text).to_bytes(8, "little") + text + bytes(64)


HOSTILE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "no file of this kind": lambda data: b"PK\x03\x04" + data,
    "a header of 2^63 bytes": lambda data: (2**63).to_bytes(8, "little") + data[8:],
    "no JSON": header(b"{" * 200),
    "a shape of 2^62": header({"0.x": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**62]}}),
    "negative": header({"0.x": {"dtype": "F32", "shape": [-1], "data_offsets": [-4, 0]}}),
    "overlapping": header(
        {n: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for n in ("0.x", "0.y")}
    ),
    "a path as a name": retensored(lambda t: {**t, "0.../../../etc/passwd": next(iter(t.values())).clone()}),
    "not finite": retensored(lambda t: {k: v / 0 for k, v in t.items()}),
    "of another shape": retensored(lambda t: {k: v.flatten()[:-1].contiguous() for k, v in t.items()}),
    "of another type": retensored(lambda t: {k: v.double() for k, v in t.items()}),
    "none": retensored(lambda t: {}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensors(name, run, bert, refused):
    tensors(run, HOSTILE[name])
    refused(predict(run, bert), untouched=[run, bert])
    refused(predict(run / "adaptation", bert), untouched=[run, bert])


def test_a_truncated_file(run, bert, rows, refused):
    path = run / "adaptation" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(predict(run, bert), "truncated")
    refused(["eval", run, "--model", bert, "--data", rows], "truncated")
    path.unlink()
    refused(predict(run, bert), "tensors.safetensors")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: c.update(format=2), "Update luthier"),
        (lambda c: c.update(format="1"), "format"),
        (lambda c: c.update(base="0" * 64), "another base"),
        (lambda c: c["terms"][0]["card"]["method"].update({"is": "os.system"}), "os.system"),
        (lambda c: c["terms"][0]["card"]["method"].update(rank=10**9), ""),
        (lambda c: c["terms"][0]["card"].update(task={"kind": "classification"}), "task"),
        (lambda c: c["terms"][0]["card"].update(task=[1]), "task"),
        (lambda c: c["terms"][0]["card"].update(task=None), "task"),
        (lambda c: c["terms"][0]["card"].update(about="x"), ""),
        (lambda c: c["terms"][0]["card"].update(preprocess={"kind": "image"}), ""),
        (lambda c: c["terms"][0]["card"].update(preprocess=7), ""),
        (lambda c: c["terms"][0]["card"]["task"]["labels"].append("third"), "label"),
        (lambda c: c["terms"][0]["card"]["about"].update(max_new_tokens="x"), ""),
        (lambda c: c["terms"][0]["card"]["about"].update(targets={"mean": "x"}), ""),
    ],
)
def test_a_hostile_card(change, word, run, bert, refused):
    card(run, change)
    refused(predict(run, bert), word, untouched=[run])


def test_an_adaptation_of_another_base(run, tmp_path, refused):
    refused(predict(run, save_bert(tmp_path / "other", seed=1)), "another base")


def test_what_lies_beside_an_adaptation_is_not_trusted(run, bert, refused):
    write(run / "metrics.json", '{"validation": ')
    refused(predict(run, bert), "metrics.json")


# -- models of others


def config(folder, name="config.json", **settings):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_a_model_that_asks_for_code_of_its_own(model, rows, tmp_path, refused):
    (model / "evil.py").write_text("raise SystemExit('ran')")
    config(model, auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    refused(fit(model, rows, tmp_path / "out"), "auto_map")


class Evil:
    def __reduce__(self):
        return os.abort, ()


def test_a_model_of_pickles_only(model, rows, tmp_path, refused):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    refused(fit(model, rows, tmp_path / "out"), "safetensors")


def test_a_foreign_attention_kernel(model, rows, tmp_path, refused):
    config(model, _attn_implementation="evil/kernel")
    refused(fit(model, rows, tmp_path / "out"), "evil/kernel")
    config(model, _attn_implementation=None, attn_implementation="evil/kernel:run")
    refused(fit(model, rows, tmp_path / "out"), "evil/kernel")


def test_a_damaged_model(model, rows, tmp_path, refused):
    path = model / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(fit(model, rows, tmp_path / "out"), "model.safetensors")
    path.write_bytes(data)
    write(model / "config.json", "{")
    refused(fit(model, rows, tmp_path / "out"), "config.json")


# -- labels that would act


def test_odd_labels_act_nowhere(bert, tmp_path, capsys):
    data = tmp_path / "odd.csv"
    with data.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label"), *((s, ODD[i % 3]) for i, (s, _) in enumerate(sentences(60)))]
        )
    out, said = tmp_path / "out", tmp_path / "said.csv"
    assert main(compare(bert, data, out)) == 0
    assert "Traceback" not in capsys.readouterr().err
    report = (out / "report.html").read_text()
    assert report.count("</script>") == report.count("<script")  # none of them is a label's
    run = next((out / "runs").iterdir())
    assert main(predict(run, bert, "--out", str(said))) == 0
    with said.open(newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [c for c in cells if c.startswith(("=", "+", "@"))]
    for path in out.glob("*.csv"):
        assert not [c for line in csv.reader(path.open(newline="")) for c in line if c.startswith(("=", "@"))]
    capsys.readouterr()
    assert main(predict(run, bert)) == 0
    shown = capsys.readouterr().out
    assert all(label in shown for label in ODD)
    assert main(predict(run, bert, "--json")) == 0
    assert set(json.loads(capsys.readouterr().out)[0]["probabilities"]) == set(ODD)
    assert "</script>" not in (run / "adaptation" / "README.md").read_text()
    assert main(fit(bert, data, tmp_path / "fit")) == 0
    capsys.readouterr()
