"""Prompts as values: differences from their origins, on other origins, and what is refused; and fits that start from them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier.cli.main import main
from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.merging.prompt_vectors import drawn_like, origin_of, prompt_of, prompt_vector
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.deep_prompt import DeepPrompt
from luthier.methods.prompts.dpt import DPT
from luthier.methods.prompts.mpt import MPT
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.methods.prompts.task_prompt import TaskPrompt
from luthier.sources.rank_one import RankOne
from luthier.starts.carried import Carried
from tests.few import few
from tests.host import bed

KINDS = {
    "stored": lambda n: TaskPrompt(length=n),
    "drawn again": lambda n: PromptTuning(length=n),
    "deep": lambda n: DeepPrompt(length=n),
    "prefix": lambda n: PTuningV2(length=n),
    "factors": lambda n: DPT(length=n),
}


@pytest.fixture(scope="module")
def llama():
    return lt.load("builtin:llama", device="cpu")


def logits(model, made):
    ids = torch.arange(20, 44).view(2, 12)
    adapted = Adapted(model.base)
    with torch.no_grad(), adapted.attached(made):
        return adapted({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits


def trained(model, method, seed=0):
    return bed.shaken(Adaptation.new(method, model.base, seed=seed), 0.3, seed + 5)


@pytest.mark.parametrize("kind", KINDS)
def test_origin_and_vector_are_the_trained_prompt(llama, kind):
    made = trained(llama, KINDS[kind](8))
    vector, origin = prompt_vector(made, llama), origin_of(made, llama)
    assert vector.norm() > 0.1
    for site, held in prompt_of(made, llama).values.items():
        for name, value in held.items():
            assert torch.equal(
                origin.values[site][name] + vector.values[site][name], value
            ) or torch.allclose(origin.values[site][name] + vector.values[site][name], value, atol=1e-6)
    again = vector.on(origin)
    bed.close(logits(llama, again), logits(llama, made), 1e-4)
    assert prompt_vector(again, llama).cosine(vector) == pytest.approx(1.0, abs=1e-6)


def test_arithmetic_is_that_of_the_tensors_whatever_the_origin(llama):
    a, b = (trained(llama, TaskPrompt(length=6), seed=s) for s in (1, 2))
    va, vb = prompt_vector(a, llama), prompt_vector(b, llama)
    elsewhere = drawn_like(a, 9, llama)
    made = (2 * va - 0.5 * vb).on(elsewhere)
    at = made.at()[0]
    want = 2 * a.at()[0].values["P_T"] - 0.5 * b.at()[0].values["P_T"]
    assert torch.allclose(at.values["P_T"], want, atol=1e-6)
    fresh = Adaptation.new(TaskPrompt(length=6), llama.base, seed=9)
    assert torch.equal(at.values["P"], fresh.at()[0].values["P"])
    assert not torch.equal(at.values["P"], a.at()[0].values["P"])
    noise = va.random_like(3)
    assert noise.norm() == pytest.approx(va.norm(), rel=1e-5) and abs(noise.cosine(va)) < 0.3
    assert (va - va).norm() == 0


def test_training_moves_the_vector_alone_and_as_it_would_the_prompt(llama):
    parts = {"plain": PromptTuning(length=5), "apart": TaskPrompt(length=5)}
    found = {}
    for name, method in parts.items():
        made = Adaptation.new(method, llama.base, seed=4)
        before = made.at()[0].values["P"].detach().clone()
        optimiser = torch.optim.SGD(made.trainable().values(), lr=0.5)
        adapted = Adapted(llama.base)
        with adapted.attached(made):
            for p in made.trainable().values():
                p.requires_grad_(True)
            for _ in range(3):
                optimiser.zero_grad()
                ids = torch.arange(20, 44).view(2, 12)
                adapted({"input_ids": ids}).logits.square().mean().backward()
                optimiser.step()
        assert torch.equal(before, made.at()[0].values["P"]) == (name == "apart")
        found[name] = prompt_vector(made, llama)
    assert found["plain"].norm() > 1e-3
    difference = found["plain"] - found["apart"]
    assert difference.norm() < 1e-4 * found["plain"].norm()


@pytest.mark.parametrize(
    "other", [TaskPrompt(length=7), DeepPrompt(length=6), PTuningV2(length=6)], ids=lambda m: m.name
)
def test_other_lengths_and_kinds_are_refused(llama, other):
    mine, theirs = (prompt_vector(trained(llama, m), llama) for m in (TaskPrompt(length=6), other))
    with pytest.raises(OptionError, match="differ in shape"):
        mine + theirs
    with pytest.raises(OptionError, match="differ in shape"):
        mine.on(drawn_like(trained(llama, other), 0, llama))


def test_another_base_is_refused(llama):
    gpt2 = lt.load("builtin:gpt2", device="cpu")
    mine, theirs = (prompt_vector(trained(m, TaskPrompt(length=6)), m) for m in (llama, gpt2))
    with pytest.raises(OptionError, match="two bases"):
        mine + theirs


def test_what_has_no_known_origin_or_is_no_prompt_is_refused(llama):
    started = Adaptation.new(
        PromptTuning(length=4, start=Carried()),
        llama.base,
        statistics={"model.embed_tokens": {"carried": {"P": torch.ones(4, 192)}}},
    )
    assert prompt_of(started, llama).norm() > 0
    with pytest.raises(OptionError, match="task_prompt"):
        prompt_vector(started, llama)
    with pytest.raises(OptionError, match="no prompt or prefix"):
        prompt_vector(Adaptation.new(lt.methods.LoRA(rank=2), llama.base), llama)


SETTINGS = {"steps": 2, "batch_size": 8, "signal": "choices", "progress": False, "rate": 1e-6}


@pytest.fixture(scope="module")
def verdicts():
    return replace(lt.data("builtin:verdicts").limit(train=16, validation=4), test=None)


def test_a_fit_starts_from_a_sum(llama, verdicts):
    a, b = (trained(llama, TaskPrompt(length=4), seed=s) for s in (1, 2))
    start = (prompt_vector(a, llama) + prompt_vector(b, llama)).on(origin_of(a, llama))
    for method in (PromptTuning(length=4), TaskPrompt(length=4)):
        fitted = lt.fit(llama, verdicts, method, after=start, **SETTINGS)
        assert fitted.adaptation.method.start == Carried()
        held = prompt_of(fitted).values["model.embed_tokens"]["P"]
        assert torch.allclose(held, prompt_of(start, llama).values["model.embed_tokens"]["P"], atol=1e-4)
    with pytest.raises(OptionError, match=r"wants P of shape \(5, 192\).*\(4, 192\)"):
        lt.fit(llama, verdicts, PromptTuning(length=5), after=start, **SETTINGS)
    with pytest.raises(OptionError, match="no one start"):
        lt.fit(llama, verdicts, lt.methods.get("dept")(length=4), after=start, **SETTINGS)


def test_a_start_of_the_same_source_is_taken_over_whole(llama, verdicts):
    method = MPT(length=4, source=RankOne(train_shared=False))
    before = trained(llama, MPT(length=4))
    fitted = lt.fit(llama, verdicts, method, after=before, **SETTINGS)
    for name, value in before.at()[0].values.items():
        assert torch.allclose(fitted.adaptation.at()[0].values[name], value, atol=1e-4), name
    assert fitted.adaptation.counts()["method"] == 4 + 192


def test_a_run_that_started_elsewhere_is_another_run(llama, verdicts, tmp_path):
    a, b = (trained(llama, PromptTuning(length=4), seed=s) for s in (1, 2))
    lt.fit(llama, verdicts, "prompt_tuning", out=tmp_path / "plain", **SETTINGS)
    assert "after" not in (tmp_path / "plain/run.json").read_text()
    method = PromptTuning(length=4)
    lt.fit(llama, verdicts, method, out=tmp_path / "run", after=a, **SETTINGS)
    (tmp_path / "run/DONE").unlink()
    with pytest.raises(lt.errors.RunError):
        lt.fit(llama, verdicts, method, out=tmp_path / "run", after=b, **SETTINGS)


def test_the_commands_combine_compare_and_after(tmp_path, capsys):
    rows = few("verdicts", tmp_path / "rows")
    fit = ["fit", "--model", "builtin:llama", "--data", rows, "--signal", "choices", "--steps", "2"]
    fit += ["--quiet", "--batch-size", "8"]
    for seed in "12":
        assert (
            main(
                [
                    *fit,
                    "--method",
                    "task_prompt",
                    "--set",
                    "length=4",
                    "--seed",
                    seed,
                    "--out",
                    str(tmp_path / seed),
                ]
            )
            == 0
        )
    folders = [str(tmp_path / seed) for seed in "12"]
    capsys.readouterr()
    out = str(tmp_path / "sum")
    assert (
        main(["prompts", "combine", *folders, "--weight", "1", "--weight", "-0.5", "--out", out, "--json"])
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["vector"] > 0 and list(said["terms"].values()) == [1, -0.5]
    assert main(["prompts", "compare", *folders, out, "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert lines[2]["vector"] == pytest.approx(said["vector"]) and lines[0]["cosines"][
        folders[0]
    ] == pytest.approx(1)
    assert main(["prompts", "compare", *folders]) == 0 and "cosine to 2" in capsys.readouterr().out
    after = str(tmp_path / "after")
    assert main([*fit, "--method", "prompt_tuning", "--set", "length=4", "--after", out, "--out", after]) == 0
    assert (
        main(
            [
                *fit,
                "--method",
                "prompt_tuning",
                "--set",
                "length=6",
                "--after",
                out,
                "--out",
                after + "2",
            ]
        )
        == 2
    )
    assert "wants P of shape (6, 192)" in capsys.readouterr().err
    assert main(["prompts", "combine", *folders, "--weight", "1", "--out", out]) == 2
    for origin in ("7", after):
        assert (
            main(["prompts", "combine", folders[0], "--origin", origin, "--out", str(tmp_path / "else")]) == 0
        )
