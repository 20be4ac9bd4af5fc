"""CPT: its context's layout, its start, its ball, its loss, and who may have it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import luthier as lt
from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.prompts.cpt import CPT, context_loss
from luthier.papers.checks.s247 import colours
from luthier.starts.demonstrations import FORMAT, INPUT, Demonstrations
from luthier.starts.normal import Normal
from luthier.train.beginning import drawn_in_turn
from tests.host import bed

SETTINGS = {"batch_size": 4, "signal": "choices", "progress": False}


@pytest.fixture(scope="module")
def llama():
    return lt.load("builtin:llama", device="cpu")


def test_the_layout_says_what_every_token_is(llama):
    made = lt.fit(llama, colours(), CPT(start=Demonstrations(shots=3)), steps=1, **SETTINGS).adaptation
    layout = made.at()[0].layout
    rows, text, read = [], [], []
    tokenizer = llama.preprocess.tokenizer
    for i, kind in zip(layout["ids"], layout["kinds"], strict=True):
        if kind == FORMAT and i in tokenizer.all_special_ids:
            rows.append((text := [], read := []))
        if kind == INPUT:
            text.append(i)
        elif kind > 0:
            read.append((kind, i))
    assert len(rows) == 3
    for back, (front, answer) in zip((3, 2, 1), rows, strict=True):
        words = tokenizer.decode(front).strip()
        assert words in colours().train.inputs
        assert {k for k, _ in answer} == {back} and answer[-1][1] == tokenizer.eos_token_id
        assert tokenizer.decode([i for _, i in answer[:-1]]).strip() in words  # each text names its colour
    assert made.at()[0].values["S"].shape[0] == sum(k <= 0 for k in layout["kinds"])
    assert {tokenizer.decode([i for _, i in a[:-1]]).strip() for _, a in rows} == {"red", "blue"}


def test_the_ball_of_each_kind_holds_after_the_last_step(llama):
    method = CPT(start=Demonstrations(shots=2), input_radius=0.05, format_radius=0.2)
    fitted = lt.fit(llama, colours(), method, steps=40, rate=0.1, **SETTINGS)
    at = fitted.adaptation.at()[0]
    shift, radii = at.values["S"], method.radii(at.layout["kinds"], at.site.out_features)
    assert sorted(set(radii.tolist())) == pytest.approx([r * (192 / 2048) ** 0.5 for r in (0.05, 0.2)])
    assert (shift.norm(dim=1) <= radii + 1e-6).all()
    assert (shift.norm(dim=1) > 0.99 * radii).any()  # a rate that leaves it at once


def test_it_begins_as_in_context_learning_and_saves_as_it_is(llama, tmp_path):
    fitted = lt.fit(
        llama, colours(), CPT(start=Demonstrations(shots=2)), steps=4, out=tmp_path / "run", **SETTINGS
    )
    again = lt.load_adaptation(tmp_path / "run", llama)
    assert again.adaptation.layouts() == fitted.adaptation.layouts()
    texts = colours().test.inputs
    assert (again.predict_proba(texts) == fitted.predict_proba(texts)).all()


def test_the_context_loss_token_by_token():
    rng = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(7, 5, generator=rng), [1, 2, 3, 4, 0, 2, 1]
    kinds = [INPUT, 2, 2, FORMAT, INPUT, 1, 1]
    each = [-F.log_softmax(logits[i - 1], -1)[ids[i]] for i in range(1, 7)]
    far, near = (each[0] + each[1]) / 2, (each[4] + each[5]) / 2
    for gamma in (1.0, 0.5):
        torch.testing.assert_close(context_loss(logits, ids, kinds, gamma), gamma**2 * far + gamma * near)


def test_a_neighbouring_answer_is_another_answer():
    """Without a begin token an answer may stand right behind another's end."""
    logits, ids = torch.randn(4, 5), [1, 2, 3, 4]
    got = context_loss(logits, ids, [INPUT, 2, 1, 1], 0.5)
    want = 0.25 * F.cross_entropy(logits[:1], torch.tensor([2])) + 0.5 * F.cross_entropy(
        logits[1:3], torch.tensor([3, 4])
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
@torch.no_grad()
def test_what_stands_at_a_prompt_is_what_the_decoder_made_of_it(name):
    """Also behind padding in a recurrent tower, whose prompts stand behind it."""
    base, x = bed.base(name), bed.batch(name)
    made = Adaptation.new(CPT(), base)
    model = Adapted(base)
    with model.attached(made):
        out = model(x)
    said = base.get_output_embeddings()(out.notes["prompt"][0])
    assert said.shape[:2] == (4, 6)
    table = base.get_input_embeddings()(x["input_ids"][:1])
    prompt = made.at()[0].values["E"][None]
    whole = base(inputs_embeds=torch.cat([prompt, table], 1)).logits
    for row in (0, 1):  # the second has padding in front
        bed.close(said[row], whole[0, :6], 1e-5)


def test_classes_take_turns_and_no_row_twice():
    classes = [0, 0, 0, 0, 1, 2]
    for seed in range(5):
        found = drawn_in_turn(classes, 6, seed)
        assert sorted(found) == list(range(6)) and {classes[i] for i in found[:3]} == {0, 1, 2}
    assert drawn_in_turn(classes, 3, 0) == drawn_in_turn(classes, 6, 0)[:3]


def test_who_cannot_have_it_is_told(llama):
    with pytest.raises(OptionError, match="begins with demonstrations"):
        lt.fit(llama, colours(), CPT(start=Normal()), steps=1, **SETTINGS)
    with pytest.raises(OptionError, match="training rows"):
        lt.fit(llama, colours(), CPT(start=Demonstrations(shots=9)), steps=1, **SETTINGS)
    bert = lt.load("builtin:bert", device="cpu")
    with pytest.raises(OptionError, match="for a decoder that writes"):
        lt.fit(bert, colours(), CPT(), steps=1, batch_size=4, progress=False)
