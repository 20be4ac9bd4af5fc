"""Prompts near a text: the penalty, the projection, the curve over gammas, and the commands."""

from __future__ import annotations

import json

import pytest
import torch

import luthier as lt
from luthier.cli.main import main
from luthier.errors import OptionError
from luthier.host import Adaptation
from luthier.instruments.waywardness import (
    Curve,
    Point,
    at_the_input,
    projection,
    random_texts,
    scored,
    waywardness,
    word_f1,
    words_of,
)
from luthier.methods.prompts.deep_prompt import DeepPrompt
from luthier.methods.prompts.near_text import NearText, distance
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.starts.vocabulary import Vocabulary
from tests.few import few
from tests.train import train_testbed as bed

SETTINGS = {"steps": 3, "batch_size": 16, "progress": False, "seed": 1}
IDS = (4, 9, 12)


@pytest.fixture(scope="module")
def tiny():
    return bed.model("decoder")


def prompt(fitted):
    return at_the_input(fitted.model, fitted.adaptation)[0]


def test_the_distance_is_the_mean_over_tokens_of_squared_ones():
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    assert distance(a, b).item() == pytest.approx(
        sum(((a[i] - b[i]) ** 2).sum().item() for i in range(3)) / 3
    )


def test_gamma_0_and_no_text_are_prompt_tuning_bit_for_bit(tiny):
    plain = prompt(lt.fit(tiny, bed.data(), PromptTuning(length=3), **SETTINGS))
    for method in (NearText(length=3, ids=IDS, gamma=0.0), NearText(length=3)):
        assert torch.equal(prompt(lt.fit(tiny, bed.data(), method, **SETTINGS)), plain)
    pulled = prompt(lt.fit(tiny, bed.data(), NearText(length=3, ids=IDS, gamma=1.0), **SETTINGS))
    assert not torch.equal(pulled, plain)


def test_a_large_gamma_ends_at_the_text(tiny):
    fitted = lt.fit(
        tiny, bed.data(), NearText(length=3, ids=IDS, gamma=1e4), **{**SETTINGS, "steps": 60, "rate": 0.02}
    )
    held, table = at_the_input(tiny, fitted.adaptation)
    ids, apart = projection(held, table)
    assert tuple(ids.tolist()) == IDS and apart.max() < 0.1


def test_a_start_at_the_text_projects_to_it_and_scores_as_the_text_does(tiny):
    text = " ".join(tiny.preprocess.tokenizer.convert_ids_to_tokens(list(IDS)))
    method = NearText(length=3, ids=IDS, start=Vocabulary(ids=IDS))
    made = Adaptation.new(method, tiny.base)
    held, table = at_the_input(tiny, made)
    ids, apart = projection(held, table)
    assert torch.equal(held, table[list(IDS)]) and float(apart.max()) == pytest.approx(0, abs=1e-6)
    assert word_f1(tiny.preprocess.tokenizer.decode(ids), text) == 1
    assert [t[0][0] for t in words_of(tiny, made)] == text.split()
    fitted = lt.fit(tiny, bed.data(), PromptTuning(length=3), **SETTINGS)
    assert (
        scored(fitted, bed.data().validation, prompt(fitted))
        == fitted.score(bed.data().validation)["accuracy"]
    )


def test_f1_counts_words_as_often_as_they_stand():
    assert word_f1("a b b c", "b c d b") == pytest.approx(2 * 3 / 8)
    assert word_f1("a", "b") == word_f1("", "b") == 0 and word_f1("a b", "b a") == 1


def test_projection_is_the_nearest_row_in_l2():
    table = torch.randn(50, 6)
    rows = table[[7, 3, 3, 49]] + 0.01 * torch.randn(4, 6)
    ids, apart = projection(rows, table)
    assert ids.tolist() == [7, 3, 3, 49] and apart.max() < 0.1
    shifted = projection(rows + 5.0, table)[0]
    want = [(row + 5 - table).norm(dim=1).argmin().item() for row in rows]
    assert shifted.tolist() == want


def test_the_curve_has_every_text_and_gamma_from_one_start(tiny):
    texts = random_texts(tiny, 2, 3)
    assert len(texts) == 2 and all(len(t.split()) == 3 for t in texts)
    said = []
    found = waywardness(
        tiny, bed.data(), texts, gammas=[0.0, 100.0], say=said.append, rate=0.05, **{**SETTINGS, "steps": 60}
    )
    assert [(p.text, p.gamma) for p in found.points] == [(t, g) for t in texts for g in (0.0, 100.0)]
    assert len(said) == 3  # the prompt without a penalty is one for both texts
    assert len({(p.score, p.start_score) for p in found.at(0.0)}) == 1
    assert all(p.f1 == 1 and p.projected == p.text for p in found.at(100.0)) and found.f1(0.0) < 1
    with pytest.raises(OptionError, match="a gamma at least"):
        waywardness(tiny, bed.data(), texts, gammas=[])


def test_wayward_is_the_cheapest_gamma_that_reads_as_the_text():
    def point(gamma, f1, score):
        return Point("t", gamma, f1, "p", score, 0.0, 0.0)

    found = Curve((point(0.0, 0.0, 0.8), point(0.1, 0.95, 0.78), point(1.0, 1.0, 0.5)), "accuracy", True)
    assert found.wayward() == 0.1 and found.cost(1.0) == pytest.approx(0.3)
    assert found.wayward(most=0.01) is None
    assert Curve(found.points, "loss", False).wayward() == 1.0


def test_ids_that_do_not_fit_and_prompts_without_words_are_refused(tiny):
    with pytest.raises(OptionError, match="Set length=3"):
        Adaptation.new(NearText(length=4, ids=IDS), tiny.base)
    with pytest.raises(OptionError, match="no row of"):
        Adaptation.new(NearText(length=1, ids=(999,)), tiny.base)
    from luthier.methods.prefixes.p_tuning_v2 import PTuningV2

    with pytest.raises(OptionError, match="at the input"):
        words_of(tiny, Adaptation.new(PTuningV2(length=2), tiny.base))
    assert len(words_of(tiny, Adaptation.new(DeepPrompt(length=2), tiny.base), near=2)[1]) == 2


def test_the_commands_project_and_walk(tmp_path, capsys):
    model = ["--model", "builtin:llama"]
    rows = ["--data", few("departments", tmp_path / "rows"), "--signal", "choices"]
    quick = ["--steps", "1", "--batch-size", "2"]
    out = str(tmp_path / "run")
    near = ["--method", "near_text", "--set", "length=2"]
    assert main(["fit", *model, *rows, *quick, *near, "--quiet", "--out", out]) == 0
    capsys.readouterr()
    assert main(["prompts", "words", out, "--near", "2", "--json"]) == 0
    words = json.loads(capsys.readouterr().out)
    assert len(words) == 2 and words[0][0]["distance"] <= words[0][1]["distance"]
    assert main(["prompts", "words", out]) == 0 and "nearest 3" in capsys.readouterr().out
    walk = [
        "instruments",
        "waywardness",
        *model,
        *rows,
        *quick,
        "--texts",
        "1",
        "--tokens",
        "2",
        "--gamma",
        "0",
    ]
    assert main([*walk, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "accuracy" and len(found["points"]) == 1 and found["wayward_gamma"] is None
