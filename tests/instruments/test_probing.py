"""Probes of frozen features: what they read, and that what a model loses shows as lost."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from luthier.cli.main import main
from luthier.data.lexemes import lexemes
from luthier.data.split import Data, Split
from luthier.data.task import Task
from luthier.errors import DataError, ModelError, OptionError
from luthier.host import Adaptation
from luthier.instruments.probing import TOKEN, features, probing
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.methods.sparse.parameters import Full
from luthier.models.load import load
from tests.train import train_testbed as bed


def test_lexemes_of_several_languages():
    kinds = lambda text: [(text[a:b], kind) for a, b, kind in lexemes(text)]
    assert kinds("def f(x): return 'a b' + x2") == [
        ("def", "keyword"), ("f", "call"), ("(", "bracket"), ("x", "name"), (")", "bracket"), (":", "operator"),
        ("return", "keyword"), ("'a b'", "string"), ("+", "operator"), ("x2", "name"),
    ]  # fmt: skip
    assert kinds("END while i >= 1.5e3 {}")[:5] == [
        ("END", "keyword"), ("while", "keyword"), ("i", "name"), (">=", "operator"), ("1.5e3", "number"),
    ]  # fmt: skip


def data(rows=60):
    rng = np.random.default_rng(0)
    texts, labels = [], []
    for i in range(rows):
        names = [str(w) for w in rng.choice(["cat", "dog", "red", "blue"], 4)]
        texts.append(f"is {names[0]} not {names[1]} " + ("good " if i % 2 else "bad ") + " ".join(names[2:]))
        labels.append(i % 2)
    task = Task(kind="classification", modality="text", labels=("a", "b"), input="code", label="language")
    half = rows // 2
    parts = [Split(texts[:half], np.array(labels[:half])), Split(texts[half:], np.array(labels[half:]))]
    return Data(parts[0], None, parts[1], task, "tiny")


def test_features_are_means_over_tokens_and_the_first_token_of_each_lexeme():
    model = bed.model()
    texts = ["the cat", "so very dull"]
    marks = [lexemes(text) for text in texts]
    found = features(model, None, texts, marks, (1, 2))
    for i, text in enumerate(texts):
        batch = model.preprocess.collate(model.preprocess.encode([text]))
        states = model.base(**batch, output_hidden_states=True).hidden_states
        for layer in (1, 2):
            want = states[layer][0]
            means, tokens = found[layer]
            np.testing.assert_allclose(means[i], want.mean(0).numpy(), atol=1e-5)
            at = slice(0, 2) if i == 0 else slice(2, 5)
            np.testing.assert_allclose(tokens[at], want[1:-1].numpy(), atol=1e-5)


def test_prompts_in_front_are_not_read_and_what_was_cut_off_is_nan():
    model = bed.model()
    model.preprocess = model.preprocess.with_settings(max_length=4)
    texts = ["the cat was red"]
    made = Adaptation.new(PromptTuning(length=3), model.base)
    means, tokens = features(model, made, texts, [lexemes(texts[0])], (2,))[2]
    assert tokens.shape == (4, 32) and np.isfinite(tokens[:2]).all() and np.isnan(tokens[2:]).all()
    assert np.isfinite(means).all()


def test_an_untrained_adaptation_loses_nothing_and_noise_loses_what_was_there():
    model, rows = bed.model(), data()
    rng = torch.Generator().manual_seed(0)
    same = Adaptation.new(LoRA(rank=2), model.base)
    wrecked = Adaptation.new(Full(), model.base)
    for p in wrecked.trainable().values():
        p.data.zero_()
        p.data.add_(3 * torch.randn(p.shape, generator=rng) if p.dim() == 1 else 0)
    found = {
        p.property: p for p in probing(model, {"same": same, "wrecked": wrecked}, rows, label="language")
    }
    assert set(found) == {TOKEN, "language"}
    for probe in found.values():
        assert probe.loss("same") == 0 and probe.accuracy["base"] > 0.9
        assert probe.accuracy["wrecked"] <= probe.most_frequent + 0.1 < probe.accuracy["base"]
        assert probe.card()["loss"] == {n: probe.loss(n) for n in ("same", "wrecked")}
    assert (found["language"].fitted, found["language"].tested) == (30, 30)
    assert found[TOKEN].fitted == 30 * 7  # every lexeme is one token here


def test_another_model_is_probed_by_its_own_tokens():
    model, other = bed.model(), bed.model(seed=1)
    [token, _] = probing(model, {"other": other}, data(), layers=(1,))
    assert token.layer == 1 and 0 < token.accuracy["other"] <= 1


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_decoders_are_probed_and_of_encoder_decoders_the_encoder(kind):
    found = probing(
        bed.model(kind), {"other": bed.model(kind, seed=1)}, data(), layers=(2,), label="language"
    )
    assert [p.property for p in found] == [TOKEN, "language"]
    assert all(p.accuracy["base"] > p.most_frequent for p in found)


def test_what_cannot_be_probed_is_refused():
    model, rows = bed.model(), data()
    with pytest.raises(OptionError, match="1 to 2"):
        probing(model, {}, rows, layers=(3,))
    with pytest.raises(OptionError, match="another name"):
        probing(model, {"base": bed.model()}, rows)
    with pytest.raises(DataError, match="tested on"):
        probing(model, {}, replace(rows, test=None))
    with pytest.raises(ModelError, match="blocks"):
        probing(replace(model, preprocess=None), {}, rows)
    alone = replace(rows, train=Split(["the", "a"], np.array([0, 0])))
    with pytest.raises(DataError, match="nothing to probe"):
        probing(model, {}, alone)


def test_from_arguments_to_a_table(tmp_path, capsys):
    file, rows = tmp_path / "code.jsonl", data()
    file.write_text("\n".join(json.dumps({"code": x, "language": "ab"[y]}) for x, y in rows.train))
    base = load("builtin:bert", device="cpu")
    from luthier.host.files import save

    save(Adaptation.new(LoRA(rank=2), base.base), tmp_path / "lora", base.fingerprint)
    given = [
        "instruments",
        "probing",
        "builtin:bert",
        str(tmp_path / "lora"),
        "--data",
        str(file),
        "--device",
        "cpu",
    ]
    given += ["--input", "code", "--label", "language", "--layer", "2"]
    assert main([*given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["property"], one["layer"]) for one in told] == [("token", 2), ("language", 2)]
    assert all(one["loss"][str(tmp_path / "lora")] == 0 for one in told)
    assert main(given) == 0 and "most frequent" in capsys.readouterr().out
    assert main([*given, "--layer", "9"]) == 2
