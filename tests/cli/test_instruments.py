"""`luthier instruments`: what it prints, and how it ends."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from luthier.cli.main import main
from tests.train import train_testbed as bed


@pytest.fixture(scope="module")
def mamba(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mamba")
    tokenizer = bed.tokenizer()
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0, bos_token_id=2,
        eos_token_id=3,
    )  # fmt: skip
    MambaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [
        f"{word} movie the plot,{label}"
        for word, label in (("great", "good"), ("awful", "bad"))
        for _ in range(1)
    ]
    more = [
        f"{a} {b},{'good' if a in ('good', 'fine') else 'bad'}"
        for a in ("good", "fine", "dull", "bad")
        for b in ("cat", "dog", "plot", "movie", "one", "two")
    ]
    path.write_text("text,label\n" + "\n".join(rows + more) + "\n", encoding="utf-8")
    return str(path)


def said(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_lyapunov_gives_every_layer_a_figure_below_0(mamba, table, capsys):
    found = said(capsys, "instruments", "lyapunov", "--model", mamba, "--data", table, "--rows", "6")
    assert found["rows"] == 6 and len(found["layers"]) == 2
    assert all(v["mean"] < v["largest"] < 0 for v in found["layers"].values())
    assert main(["instruments", "lyapunov", "--model", mamba, "--data", table]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in found["layers"])


def test_lyapunov_of_a_model_without_a_scan_is_refused(table, capsys):
    assert main(["instruments", "lyapunov", "--model", "builtin:llama", "--data", table]) == 2
    assert "selective scan" in capsys.readouterr().err


def test_divergence_compares_two_models(mamba, table, capsys):
    found = said(
        capsys, "instruments", "divergence", "--model", mamba, "--method", "lora", "--set", "rank=2", "targets=ssm.projections",
        "--reference", "builtin:llama", "--reference-method", "lora", "--data", table, "--steps", "3", "--batch-size", "4",
    )  # fmt: skip
    assert list(found) == [mamba, "builtin:llama"]
    assert all(len(v["fp32"]) == len(v["bf16"]) == 3 and v["mean"] > 0 for v in found.values())


def test_shots_gives_accuracies_and_gains(table, capsys):
    found = said(
        capsys, "instruments", "shots", "--model", "builtin:llama", "--reference", "builtin:gpt2", "--data", table,
        "--shots", "2", "--rows", "3",
    )  # fmt: skip
    figures = {(x["model"], x["shots"]): x for x in found["figures"]}
    assert set(figures) == {(m, k) for m in ("builtin:llama", "builtin:gpt2") for k in (0, 2)}
    for (model, k), x in figures.items():
        assert x["gain"] == pytest.approx(x["accuracy"] - figures[model, 0]["accuracy"])
        assert k or x["gain"] == 0


def test_prefix_gives_a_verdict(table, capsys):
    found = said(
        capsys, "instruments", "prefix", "--model", "builtin:llama", "--data", table, "--rank", "1", "--seeds", "2",
        "--steps", "1", "--batch-size", "2", "--quiet",
    )  # fmt: skip
    assert found["verdict"] in ("prefix suffices", "attention must change", "undecided")
    assert set(found["prefix"]) == set(found["lora"]) == {"0", "1"}
