"""What crosses languages: the world of ciphers, telling languages apart, and the study as a command."""

from __future__ import annotations

import json
import random

import pytest
import torch

from luthier.cli.main import main
from luthier.data.load import load_data, load_split
from luthier.errors import DataError, OptionError
from luthier.host import Adaptation
from luthier.instruments.languages import Identifier, distance
from luthier.instruments.transfer import SOURCE, arms, transfer
from luthier.models.testbeds import ciphers
from luthier.models.testbeds.ciphers import ENGLISH, FAR, NEAR, Language
from luthier.models.testbeds.words import KINDS

LANGUAGES = (ENGLISH, NEAR, FAR)


def texts(language, seed, rows=60):
    rng = random.Random(seed)
    return [language.says(ciphers.sentence(rng, rng.choice(list(KINDS)))) for _ in range(rows)]


# -- languages


def test_a_cipher_is_one_to_one_and_english_is_itself():
    known = ciphers.words([ENGLISH])
    for language in (*LANGUAGES, Language("other", "xyz")):
        assert len({language.word(w) for w in known}) == len(known)
    assert ENGLISH.says(["red", "oak"]) == "red oak"
    assert NEAR.word("bag") == "gah" and NEAR.word("tin") == "tin"
    assert FAR.says(["red", "oak"]) == f"{FAR.word('oak')} {FAR.word('red')}" != "oak red"


def test_every_word_of_the_world_is_one_token():
    words = ciphers.tokenizer(LANGUAGES)
    for text in (*texts(FAR, 0, 5), *texts(NEAR, 1, 5), "<extra_id_0> red <extra_id_1>"):
        ids = words(text)["input_ids"]
        assert len(ids) == len(text.split()) and words.unk_token_id not in ids
        assert words.decode(ids).split() == text.split()


def test_distances_grow_from_nothing_to_everything():
    english = texts(ENGLISH, 0)
    assert distance(english, english) == 0
    assert distance(["aaa bb"], ["ccc dd"]) == 1
    same, near, far = (distance(english, texts(language, 1)) for language in LANGUAGES)
    assert same < near < far


def test_languages_are_told_apart():
    identifier = Identifier({language.name: texts(language, 0, 150) for language in LANGUAGES})
    for language, least in zip(
        LANGUAGES, (0.9, 0.7, 1.0), strict=True
    ):  # half of the words of near are English ones
        new = texts(language, 5)
        assert identifier.share(new, language.name) >= least
        assert identifier.share(new, "far") == (language is FAR)
    assert identifier.of("  ") is None and identifier.share(["", "red tiger"], "en") == 0.5
    with pytest.raises(DataError, match="No texts of 'xx'"):
        identifier.share(["red"], "xx")
    with pytest.raises(DataError, match="two at least"):
        Identifier({"en": ["red"]})


# -- the study


@pytest.fixture(scope="module")
def model():
    return ciphers.fresh(LANGUAGES, "decoder", 0, width=16)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder, kinds = tmp_path_factory.mktemp("rows"), ("animal", "food")
    found = {}
    for language in LANGUAGES:
        rng, path = random.Random(0), folder / f"{language.name}.csv"
        rows = [f"{language.says(ciphers.sentence(rng, kinds[i % 2]))},{kinds[i % 2]}" for i in range(40)]
        path.write_text("\n".join(["text,label", *rows]))
        found[language.name] = str(path)
    return found


def test_each_arm_trains_what_it_says(model):
    width = model.base.config.hidden_size
    whole = sum(p.numel() for p in model.base.parameters())
    made = arms(model.base, (1, 5))
    assert [(a.length, a.reparameterised, a.frozen) for a in made] == [
        (n, mlp, frozen) for n in (1, 5) for mlp in (False, True) for frozen in (True, False)
    ]
    for arm in made:
        assert arm.kept == arm.length * width
        net = 2 * width * width + 2 * width if arm.reparameterised else 0
        assert arm.trained == arm.kept + net + (0 if arm.frozen else whole)
        reached = {
            n for n, m in model.base.named_modules() if next(m.parameters(recurse=False), None) is not None
        }
        counted = Adaptation.new(arm.method, model.base, reached=reached).counts()["method"]
        assert counted == arm.trained


def test_the_study_scores_every_language_and_leaves_the_model_alone(model, tables):
    data = load_data(tables["en"], split=(0.5, 0.25, 0.25))
    targets = {name: load_split(tables[name], data.task) for name in ("near", "far")}
    before = {k: v.clone() for k, v in model.base.state_dict().items()}
    said = []
    found = transfer(
        model, data, targets, lengths=(2,), seeds=(0, 1), rates=(1.0, 3.0), steps=2, progress=said.append
    )
    assert len(found.arms) == len(said) == 4
    for arm in found.arms:
        assert {name: len(of) for name, of in arm.scores.items()} == {SOURCE: 2, "near": 2, "far": 2}
        assert arm.rate in (arm.method.rate, arm.method.rate * 3)
    assert 0 < found.distances["near"] < found.distances["far"]
    assert all(torch.equal(before[k], v) for k, v in model.base.state_dict().items())
    card = json.loads(json.dumps(found.card()))
    assert {arm["kept"] for arm in card["arms"]} == {32}
    with pytest.raises(OptionError, match="no target"):
        transfer(model, data, targets, known={"fr": 1.0})
    with pytest.raises(OptionError, match="needs validation and test rows"):
        transfer(model, data, {})


def test_the_command_prints_languages_by_distance(model, tables, tmp_path, capsys):
    folder = tmp_path / "model"
    model.base.save_pretrained(folder)
    model.preprocess.tokenizer.save_pretrained(folder)
    command = [
        "instruments", "transfer", "--model", str(folder), "--data", tables["en"], "--target", f"far={tables['far']}",
        "--target", f"near={tables['near']}", "--distance", "near=0.25", "--lengths", "1,3", "--no-mlp", "--frozen-only",
        "--no-grid", "--steps", "1", "--train-rows", "8",
    ]  # fmt: skip
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(a["length"], a["trained"]) for a in found["arms"]] == [(1, 16), (3, 48)]
    assert found["distances"]["near"] == 0.25 and set(found["arms"][0]["mean"]) == {SOURCE, "near", "far"}
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.index("near (0.25)") < printed.out.index("far (")
    assert "1 of 2" in printed.err
    assert main([*command[:-4], "--lengths", "0"]) == 2
    assert "--lengths '0'" in capsys.readouterr().err
    assert main([*command, "--distance", "far=-1"]) == 2
