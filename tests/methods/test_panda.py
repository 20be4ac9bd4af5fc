"""PANDA: what lambda = 0 is, what happens to the teacher, lambda by itself, spaces that differ, and the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import luthier as lt
from luthier.cli.main import main
from luthier.errors import OptionError, RunError
from luthier.host import Adaptation, Adapted
from luthier.instruments.transferability import embeddings, transferability
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.panda import Panda
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.signals.distillation import answers, squared_distance
from luthier.signals.objectives import CrossEntropy, NextToken
from luthier.signals.task_embedding import prediction_states, similarity, task_embedding
from luthier.starts.normal import Normal
from tests.few import few
from tests.host import bed

SETTINGS = {"steps": 3, "batch_size": 8, "progress": False, "seed": 2}


@pytest.fixture(scope="module")
def llama():
    return lt.load("builtin:llama", device="cpu")


@pytest.fixture(scope="module")
def verdicts():
    return replace(lt.data("builtin:verdicts").limit(train=24, validation=4), test=None)


def source(model, method=None, seed=5):
    return bed.shaken(Adaptation.new(method or PTuningV2(length=4), model.base, seed=seed), 0.3, 3)


@pytest.mark.parametrize("signal", ["choices", "auto"])
def test_lambda_0_is_plain_tuning_bit_for_bit_from_either_start(llama, verdicts, signal):
    teacher, settings = source(llama), {**SETTINGS, "signal": signal}
    match = "logits" if signal == "choices" else "hidden"  # the teacher has no linear head
    panda = Panda(length=4, transfer=0.0, match=match)
    for start in (None, teacher):
        plain = lt.fit(llama, verdicts, PTuningV2(length=4, start=Normal()), after=start, **settings)
        found = lt.fit(llama, verdicts, panda, companions={"teacher": teacher}, after=start, **settings)
        other = lt.fit(
            llama, verdicts, replace(panda, transfer=1.0, distil=50.0), companions={"teacher": teacher},
            after=start, **settings,
        )  # fmt: skip
        for k, v in plain.adaptation.state().items():
            assert torch.equal(found.adaptation.state()[k], v), k
        assert any(
            not torch.equal(other.adaptation.state()[k], v) for k, v in plain.adaptation.state().items()
        )


@pytest.mark.parametrize("teacher", [LoRA(rank=2), PromptTuning(length=3)], ids=lambda m: m.name)
def test_the_teacher_is_any_adaptation_and_is_not_touched(llama, verdicts, teacher):
    made = source(llama, teacher)
    before = {k: v.clone() for k, v in made.state().items()}
    lt.fit(
        llama,
        verdicts,
        Panda(length=4, transfer=1.0),
        companions={"teacher": made},
        signal="choices",
        **SETTINGS,
    )
    assert all(torch.equal(before[k], v) for k, v in made.state().items())
    assert all(p.grad is None for p in made.parameters())


def test_the_loss_is_the_formula():
    base = bed.base("llama")
    method = Panda(length=4, transfer=0.7, distil=0.2)
    adapted, batch = Adapted(base), bed.batch("llama")
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :4] = -100
    adapted.attach("main", Adaptation.new(method, base))
    adapted.attach("teacher", bed.shaken(Adaptation.new(LoRA(rank=2), base), 0.3, 1))
    run = SimpleNamespace(
        adapted=adapted, objective=NextToken(), batches=SimpleNamespace(batch_size=4), state={}
    )
    with adapted.using("main"):
        ours = adapted(batch).logits[:, 3:-1]
        found = method.loss(run, batch)
    with adapted.using("teacher"):
        theirs = adapted(batch).logits[:, 3:-1]
    task = torch.nn.functional.cross_entropy(ours.flatten(0, 1), batch["labels"][:, 4:].flatten())
    want = task + 0.2 * 0.7 * (ours - theirs).square().mean() / 4
    assert found.item() == pytest.approx(want.item(), rel=1e-5) and (want - task).item() > 1e-3
    found.backward()
    assert all(p.grad is None for p in adapted.adaptations["teacher"].parameters())
    auto = replace(method, transfer="auto")
    run.state["transfer"] = 0.7
    with adapted.using("main"):
        assert auto.loss(run, batch).item() == pytest.approx(want.item(), rel=1e-5)


def test_lambda_is_measured_and_stored_with_the_run(llama, verdicts, tmp_path):
    teacher = source(llama)
    method = Panda(length=4, carrier="input", transfer="auto", scout=0.5, sample=2)
    phases = method.phases()
    assert [p.name for p in phases] == ["scout", "distil"] and phases[0].uses == ("target",)
    fitted = lt.fit(
        llama, verdicts, method, companions={"teacher": teacher}, signal="choices", out=tmp_path / "run",
        **{**SETTINGS, "steps": 6},
    )  # fmt: skip
    lines = [json.loads(x) for x in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert {x["phase"] for x in lines if "loss" in x} == {"scout", "distil"}
    assert fitted.adaptation.counts()["method"] == 4 * 192 and 0 <= fitted.adaptation.about["transfer"] <= 1
    card = json.loads((tmp_path / "run/adaptation/card.json").read_text())
    assert card["terms"][0]["card"]["about"]["transfer"] == fitted.adaptation.about["transfer"]


def test_a_teacher_must_be_given_and_of_this_base(llama, verdicts):
    with pytest.raises(OptionError, match=r"'teacher' is missing.*--companion NAME=DIR"):
        lt.fit(llama, verdicts, Panda(length=4), signal="choices", **SETTINGS)
    with pytest.raises(OptionError, match="'other' is not one"):
        lt.fit(
            llama,
            verdicts,
            PromptTuning(length=4),
            companions={"other": source(llama)},
            signal="choices",
            **SETTINGS,
        )
    other = lt.load("builtin:gpt2", device="cpu")
    foreign = lt.fit(other, verdicts, PromptTuning(length=2), signal="choices", **{**SETTINGS, "steps": 1})
    with pytest.raises(OptionError, match="another base"):
        lt.fit(
            llama, verdicts, Panda(length=4), companions={"teacher": foreign}, signal="choices", **SETTINGS
        )


def test_answers_without_a_common_space_are_refused(llama, verdicts):
    with pytest.raises(RunError, match="match=hidden"):
        lt.fit(
            llama, verdicts, Panda(length=4, transfer=1.0), companions={"teacher": source(llama)}, **SETTINGS
        )
    with pytest.raises(RunError, match="match=logits"):
        squared_distance(None, torch.zeros(2, 3), "hidden states")


def test_answers_are_the_logits_that_the_loss_reads():
    class Out:
        logits, hidden = torch.arange(24.0).view(2, 3, 4), None

    batch = {"labels": torch.tensor([[-100, 1, 2], [-100, -100, 3]])}
    shifted = answers(NextToken(shift=True), Out, batch)
    assert torch.equal(shifted, torch.stack([Out.logits[0, 0], Out.logits[0, 1], Out.logits[1, 1]]))
    level = answers(NextToken(shift=False), Out, batch)
    assert torch.equal(level, torch.stack([Out.logits[0, 1], Out.logits[0, 2], Out.logits[1, 2]]))
    assert answers(CrossEntropy(), Out, batch) is Out.logits


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit", "plain"])
def test_a_task_embedding_is_a_mean_of_differences_and_ignores_padding(name):
    base = bed.base(name)
    adapted = Adapted(base)
    made = Adaptation.new(LoRA(rank=2, targets="linear" if name == "plain" else "mlp.up"), base)
    with adapted.attached(made, "one"):
        batch = bed.batch(name)
        assert float(task_embedding(adapted, "one", [batch]).norm()) == 0  # a LoRA begins as the base
        bed.shaken(made, 0.3, 1)
        whole = task_embedding(adapted, "one", [batch])
        with torch.no_grad(), adapted.using("one"):
            with_it = prediction_states(adapted, batch)
        with torch.no_grad(), adapted.using():
            without = prediction_states(adapted, batch)
        bed.close(whole.float(), (with_it - without).mean(0), 1e-5)
        assert whole.norm() > 1e-3 and similarity(whole, whole) == pytest.approx(1)
        assert similarity(whole, -whole) == pytest.approx(-1) and similarity(whole, 0 * whole) == 0
        if "attention_mask" in batch:
            rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(len(batch["input_ids"]))]
            bed.close(task_embedding(adapted, "one", rows).float(), whole.float(), 1e-5)


def test_in_a_decoder_the_place_of_prediction_is_before_the_answer(llama):
    pre = llama.preprocess
    batches = [pre.collate(pre.encode_text2text(["what is it? tin"], [a])) for a in ("tin", "a long answer")]
    adapted = Adapted(llama.base)
    with torch.no_grad():
        found = [prediction_states(adapted, b) for b in batches]
    bed.close(found[0], found[1], 1e-5)


def test_the_nearest_source_is_the_prompt_itself(llama, verdicts):
    mine, other = (source(llama, PromptTuning(length=4), seed=s) for s in (1, 2))
    found = transferability(
        llama, verdicts, mine, {"same": mine, "other": other, "lora": source(llama, LoRA(rank=2))}, rows=8
    )
    assert found["same"].similarity == pytest.approx(1) and found["same"].prompt_cosine == pytest.approx(1)
    assert found["other"].similarity < 0.99 and found["other"].prompt_cosine < 0.99
    assert found["lora"].prompt_cosine is None
    assert embeddings(llama, verdicts, {"a": mine}, rows=8)["a"].shape == (192,)
    with pytest.raises(OptionError, match="a source at least"):
        transferability(llama, verdicts, mine, {})


def test_the_commands_distil_and_rank_sources(tmp_path, capsys):
    rows = few("verdicts", tmp_path / "rows")
    fit = ["fit", "--model", "builtin:llama", "--data", rows, "--signal", "choices", "--steps", "3"]
    fit += ["--quiet", "--batch-size", "8"]
    for seed in "12":
        made = [
            "--method",
            "prompt_tuning",
            "--set",
            "length=4",
            "--seed",
            seed,
            "--out",
            str(tmp_path / seed),
        ]
        assert main([*fit, *made]) == 0
    one, two = (str(tmp_path / seed) for seed in "12")
    capsys.readouterr()
    panda = [*fit, "--method", "panda", "--set", "length=4", "carrier=input", "sample=2"]
    assert main([*panda, "--companion", f"teacher={one}", "--out", str(tmp_path / "panda")]) == 0
    assert main([*panda, "--out", str(tmp_path / "none")]) == 2 and "--companion" in capsys.readouterr().err
    assert main([*panda, "--companion", one, "--out", str(tmp_path / "none")]) == 2
    assert "--companion takes pairs" in capsys.readouterr().err
    ask = [
        "instruments",
        "transferability",
        one,
        two,
        "--target",
        two,
        "--data",
        rows,
        "--rows",
        "6",
    ]
    assert main([*ask, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["source"] == two and found[0]["similarity"] == pytest.approx(1)
    assert main(ask) == 0 and "similarity" in capsys.readouterr().out
