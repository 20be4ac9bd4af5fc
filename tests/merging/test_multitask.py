"""MPT over several tasks: what each row's prompt is, what is stored, what a new task begins with, and the whole plan."""

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
from luthier.host.files import load, save
from luthier.merging.multitask import as_written, one_task, share, spread
from luthier.methods.prompts.mpt import MPT
from luthier.methods.prompts.mpt_group import MPTGroup, divergence, drawn
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.rank_one import RankOne
from luthier.sources.task_factors import TaskFactors
from tests.host import bed
from tests.train import train_testbed as tiny

TASKS = ("a", "b", "c")
SETTINGS = {"steps": 4, "batch_size": 8, "progress": False, "max_new_tokens": 3}


def group(base, tasks=TASKS, rank=1, seed=3):
    made = Adaptation.new(MPTGroup(length=4, tasks=tasks, source=TaskFactors(rank=rank)), base, seed=seed)
    return bed.shaken(made, 0.3, 2)


def logits(base, made, batch, **given):
    adapted = Adapted(base)
    with torch.no_grad(), adapted.attached(made):
        return bed.result(adapted, {**batch, **given})


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_at_the_start_every_task_has_the_shared_prompt(name):
    base, batch = bed.base(name), bed.batch(name)
    made = Adaptation.new(MPTGroup(length=4, tasks=TASKS), base, seed=1)
    plain = Adaptation.new(PromptTuning(length=4), base, seed=1)
    want = logits(base, plain, batch)
    for given in ({}, {"task": "b"}, {"task": ["a", "c", "b", "a"]}):
        bed.close(logits(base, made, batch, **given), want, 1e-6)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_a_mixed_batch_equals_each_task_by_itself_and_each_equals_its_mpt(name, rank):
    base, batch = bed.base(name).double(), bed.batch(name)
    made = group(base, rank=rank).to(torch.float64)
    rows = ["c", "a", "b", "a"]
    mixed = logits(base, made, batch, task=rows)
    assert torch.equal(mixed, logits(base, made, batch, task=torch.tensor([2, 0, 1, 0])))
    model = SimpleNamespace(base=base)
    for i, task in enumerate(rows):
        alone = logits(base, made, batch, task=task)
        bed.close(mixed[i], alone[i], 1e-9)
        single = one_task(made, model, task).to(torch.float64)
        assert isinstance(single.method, MPT) and single.method.source.rank == rank
        bed.close(logits(base, single, batch), alone, 1e-6)
    assert not torch.allclose(
        logits(base, made, batch, task="a"), logits(base, made, batch, task="b"), atol=1e-3
    )


def test_without_a_task_rows_have_the_mean_of_the_factors_and_unknown_ones_are_refused():
    base, batch = bed.base("llama"), bed.batch("llama")
    made = group(base)
    mean = one_task(made, SimpleNamespace(base=base))
    at, held = mean.at()[0].values, made.at()[0].values
    assert torch.equal(at["P_u"], held["P_u"].mean(0)) and torch.equal(at["P"], held["P"])
    bed.close(logits(base, made, batch), logits(base, mean, batch), 1e-6)
    for wrong in ("d", 3, ["a", "b", "d", "a"]):
        with pytest.raises(RunError, match="No task is called"):
            logits(base, made, batch, task=wrong)
    with pytest.raises(OptionError, match="No task is called 'd'"):
        one_task(made, SimpleNamespace(base=base), "d")
    with pytest.raises(OptionError, match="repeated"):
        Adaptation.new(MPTGroup(tasks=("a", "a")), base)
    with pytest.raises(OptionError, match="of its own"):
        Adaptation.new(MPTGroup(tasks=("a", "train")), base)


def test_one_more_task_is_length_plus_width_numbers_of_a_file(tmp_path):
    base = bed.base("llama")
    sizes = []
    for n in (2, 3):
        made = group(base, TASKS[:n])
        save(made, tmp_path / str(n), "base")
        again = load(tmp_path / str(n), base, "base")
        assert all(torch.equal(v, made.state()[k]) for k, v in again.state().items())
        sizes.append(sum(v.numel() for v in again.state().values()))
    assert sizes[1] - sizes[0] == 4 + bed.WIDTH


def test_other_tasks_begin_with_the_prompt_and_the_mean():
    base = bed.base("llama")
    made = group(base)
    other = spread(made, SimpleNamespace(base=base), ("x", "y"))
    held, new = made.at()[0].values, other.at()[0].values
    assert torch.equal(new["P"], held["P"]) and new["P_v"].shape[0] == 2
    assert all(torch.equal(new["P_v"][i], held["P_v"].mean(0)) for i in range(2))


def test_the_tasks_of_a_step_are_a_function_of_it_and_every_number_comes():
    found = [drawn(TASKS, 1, step) for step in range(60)]
    assert found == [drawn(TASKS, 1, step) for step in range(60)]
    assert {len(f) for f in found} == {1, 2, 3} and {t for f in found for t in f} == set(TASKS)
    assert all(len(set(f)) == len(f) for f in found) and found != [drawn(TASKS, 2, s) for s in range(60)]


def test_divergence_is_kl_from_the_teacher():
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    p, q = b.softmax(-1), a.softmax(-1)
    assert float(divergence(a, b)) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    assert float(divergence(a, a)) == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def model():
    return tiny.model("encoder-decoder")


@pytest.fixture(scope="module")
def sources():
    return {name: tiny.data("text2text", seed=i) for i, name in enumerate(TASKS)}


def test_the_plan_tunes_teachers_then_all_tasks_then_a_target(model, sources, tmp_path):
    method = MPTGroup(length=4)
    joint = share(model, sources, method, out=tmp_path / "all", teacher_steps=2, **SETTINGS)
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["joint", *(f"teacher-{n}" for n in TASKS)]
    held = joint.adaptation.at()[0].values
    begin = Adaptation.new(replace(method, tasks=TASKS), model.base).at()[0].values
    assert all((held[n] != begin[n]).any() for n in held)
    assert '"companions"' in (tmp_path / "all/joint/run.json").read_text()
    start = one_task(joint, model)
    few = {**SETTINGS, "rate": 1e-7, "steps": 1}
    whole = lt.fit(model, tiny.data("text2text"), MPT(length=4), after=start, **few)
    for name, value in start.at()[0].values.items():
        assert torch.allclose(whole.adaptation.at()[0].values[name], value, atol=1e-5), name
    grouped = MPT(length=4, source=RankOne(train_shared=False))
    fitted = lt.fit(model, tiny.data("text2text"), grouped, after=start, **SETTINGS)
    assert fitted.adaptation.counts()["method"] == 4 + 32
    assert torch.equal(fitted.adaptation.at()[0].values["P"], held["P"].detach())
    again = share(model, sources, method, after=joint, teachers=dict.fromkeys(TASKS, start), **few)
    assert torch.allclose(again.adaptation.at()[0].values["P"], held["P"], atol=1e-5)


def test_teachers_pull_and_without_them_none_are_needed(model, sources):
    found = {}
    teachers = {
        n: bed.shaken(Adaptation.new(PromptTuning(length=4), model.base), 0.5, i) for i, n in enumerate(TASKS)
    }
    for distil in (0.0, 5.0):
        method = MPTGroup(length=4, distil=distil)
        fitted = share(model, sources, method, teachers=teachers, **SETTINGS)
        found[distil] = fitted.adaptation.at()[0].values["P"]
    assert not torch.equal(found[0.0], found[5.0])
    joint = replace(MPTGroup(length=4), tasks=TASKS)
    data = replace(sources["a"], validation=None, test=None)
    with pytest.raises(OptionError, match="is missing"):
        lt.fit(model, data, joint, streams={n: d.train for n, d in sources.items()}, **SETTINGS)
    plain = lt.fit(
        model, data, replace(joint, distil=0.0), streams={n: d.train for n, d in sources.items()}, **SETTINGS
    )
    assert plain.adaptation.counts()["method"] == 4 * 32 + 3 * (4 + 32)


def test_tasks_that_are_not_written_or_too_few_are_refused(model, sources):
    with pytest.raises(OptionError, match="two tasks at least"):
        share(model, {"a": sources["a"]}, **SETTINGS)
    with pytest.raises(OptionError, match="text2text"):
        share(model, {"a": sources["a"], "b": tiny.data()}, **SETTINGS)
    written = as_written(tiny.data())
    assert written.task.kind == "text2text" and set(written.train.targets) <= set(tiny.CLASSES)
    assert as_written(written) is written


def test_the_commands_share_and_take(tmp_path, capsys):
    share = [
        "prompts",
        "share",
        "--model",
        "builtin:t5",
        "--task",
        "a=builtin:verdicts",
        "--task",
        "b=builtin:order-a",
    ]
    share += [
        "--length",
        "3",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--limit",
        "8",
        "--quiet",
        "--out",
        str(tmp_path / "all"),
    ]
    assert main([*share, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tasks"] == ["a", "b"] and said["each"] == said["shared"] // 3 + 3
    joint = str(tmp_path / "all/joint")
    for name in (["--task", "b"], []):
        assert main(["prompts", "task", joint, *name, "--out", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    assert main(["prompts", "task", joint, "--task", "z", "--out", str(tmp_path / "z")]) == 2
    assert "there are a, b" in capsys.readouterr().err
    fit = [
        "fit",
        "--model",
        "builtin:t5",
        "--data",
        "builtin:order-b",
        "--limit",
        "4",
        "--steps",
        "1",
        "--quiet",
    ]
    fit += [
        "--method",
        "mpt",
        "--set",
        "length=3",
        "--after",
        str(tmp_path / "one"),
        "--out",
        str(tmp_path / "t"),
    ]
    assert main(fit) == 0
