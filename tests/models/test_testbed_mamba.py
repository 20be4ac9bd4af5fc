"""The Mamba testbed: pretrained and run by our own scan."""

import platform
from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier.models.scan import ScanMixer
from luthier.models.testbeds import card, decoder, measures, skills
from luthier.models.testbeds.build import build
from luthier.models.testbeds.recipe import recipe


@pytest.fixture(scope="module")
def loaded():
    if "mamba" not in card.installed():
        pytest.skip("no weights are stored for builtin:mamba yet: luthier testbed build mamba")
    return lt.load("builtin:mamba", device="cpu")


def test_it_computes_by_our_scan(loaded):
    mixers = [m for m in loaded.base.modules() if hasattr(m, "A_log")]
    assert len(mixers) == loaded.base.config.num_hidden_layers
    assert all(type(m) is ScanMixer for m in mixers)


def test_it_reads_documentation_better_than_a_trigram(loaded):
    there = card.read(card.FOLDER / "mamba").versions["python"]
    if there != platform.python_version():
        pytest.skip(f"the card's corpus is the documentation of Python {there}")
    found = measures.language_model(loaded, quick=True)
    assert found["bits per token"] < found["bits per token, trigram"]


def test_it_writes_the_skill_that_its_card_says_it_knows_best(loaded):
    stored = card.read(card.FOLDER / "mamba").skills
    best = max(decoder.SHORT, key=stored.__getitem__)
    assert stored[best] > stored[f"{best}, nearest"]
    asked = skills.held_out_instances(best, 30, seed=1)
    said = measures.write(loaded, [i.prompt for i in asked])
    right = sum(a == i.answer for a, i in zip(said, asked, strict=True)) / len(asked)
    assert right > stored[best] - 0.25


def test_it_is_adapted_also_at_its_time_step(loaded):
    data = lt.data({"text": ["a list", "a dict"] * 8, "label": ["x", "y"] * 8}, split=(1, 0, 0))
    method = lt.methods.LoRA(rank=2, targets="ssm.in | ssm.dt")
    fitted = lt.fit(loaded, data, method=method, epochs=2, batch_size=8, seed=0, progress=False)
    moved = [n for n, p in fitted.adaptation.trainable().items() if "dt_proj" in n and bool((p != 0).all())]
    assert moved


def test_a_build_of_three_steps_writes_a_folder_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "QUICK", 2)
    monkeypatch.setattr(measures, "TEXTS_QUICK", 4)
    losses = []
    made = build(
        "mamba",
        tmp_path / "m",
        steps=3,
        seed=5,
        quick=True,
        told=lambda step, steps, loss: losses.append(loss),
    )
    assert len(losses) == 3 and all(loss == loss for loss in losses)
    assert card.read(tmp_path / "m") == made
    assert lt.load(tmp_path / "m", device="cpu").generates


def test_noise_stands_where_it_reads_and_not_where_it_is_to_write():
    made = recipe("mamba").stages[1]
    text, skills_part = next(made.module.batches(made))
    share = float((text["input_ids"] != text["labels"]).float().mean())
    assert 0.8 * made.mix["noise"] < share < 1.2 * made.mix["noise"]
    learned = skills_part["labels"] != -100
    assert torch.equal(skills_part["input_ids"][learned], skills_part["labels"][learned])


def test_the_second_stage_ends_where_its_runs_end_on_average(monkeypatch):
    from luthier.models.testbeds import mamba
    from luthier.models.testbeds import pretrain as loop

    made = replace(recipe("mamba"), steps=2, second={"steps": 2, "batch": 2}, batch=2)
    told: list[int] = []
    found, _ = mamba.pretrain(made, told=lambda step, steps, loss, model: told.append(step))
    assert told == list(range(1, 2 + 2 * mamba.TAILS + 1)) and made.total == told[-1]
    start, _ = loop.pretrain(replace(made, second={}))
    ends = []
    for tail in range(mamba.TAILS):
        model = made.module.model(made)
        model.load_state_dict(start.state_dict())
        stage = made.stages[1]
        loop._train(model.train(), replace(stage, seed=stage.seed + tail), 0, 2, lambda *_: None)
        ends.append(model.state_dict())
    for name, value in found.state_dict().items():
        assert torch.allclose(value, sum(e[name] for e in ends) / mamba.TAILS, atol=1e-5), name


def test_batches_are_a_function_of_the_seed():
    made = recipe("mamba")

    def first(seed):
        return next(made.module.batches(replace(made, seed=seed)))

    for one, two, other in zip(first(1), first(1), first(2), strict=True):
        assert torch.equal(one["input_ids"], two["input_ids"])
        assert not torch.equal(one["input_ids"][:, :20], other["input_ids"][:, :20])
