"""GLoRA's 432 forms, against the formula written out (S319)."""

from itertools import product

import pytest
import torch
from torch import nn

from luthier.errors import FileFormatError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.structure import structure_of
from luthier.methods.low_rank.glora import FORMS, GLoRA
from luthier.methods.low_rank.lora import LoRA
from tests.host import bed

RANK = 3
ALL = [dict(zip("abcde", forms)) for forms in product(*FORMS.values())]


class Layer(nn.Module):
    """One linear layer with a role."""

    def __init__(self, bias: bool):
        super().__init__()
        self.fc1 = nn.Linear(7, 5, bias=bias)

    def forward(self, x):
        return self.fc1(x)


def moved(made, seed=1):
    rng = torch.Generator().manual_seed(seed)
    for p in made.trainable().values():
        p.data.copy_(torch.randn(p.shape, generator=rng) * 0.5)
    return made


def by_formula(layer, x, at):
    """f(x) = (W0 + W0 * A + B) x + W0 C + D * b0 + E + b0, number by number."""
    w, b = layer.weight, layer.bias
    n, m = w.shape
    held = dict(at.values.items())

    def of(letter, rows, columns):
        form = at.layout[letter]
        if form == "none":
            return torch.zeros(rows, columns)
        first = held.get(f"{letter}1", held.get(letter))
        if form == "lora":
            return first @ held[f"{letter}2"]
        return first.reshape(-1, 1).expand(rows, columns)

    A, B, C, D, E = of("A", n, m), of("B", n, m), of("C", m, 1), of("D", n, 1), of("E", n, 1)
    b = torch.zeros(n) if b is None else b
    return x @ (w + w * A + B).T + (w @ C).squeeze(1) + D.squeeze(1) * b + E.squeeze(1) + b


@pytest.mark.parametrize("bias", [True, False])
def test_every_form_is_the_formula_and_merges(bias):
    torch.manual_seed(0)
    layer = Layer(bias)
    x, worst = torch.randn(4, 6, 7), 0.0
    with torch.no_grad():
        plain = layer(x)
        assert len(ALL) == 432
        for forms in ALL:
            model = Adapted(layer)
            made = Adaptation.new(GLoRA(rank=RANK, targets="fc1", **forms), layer)
            model.attach("main", made)
            assert torch.equal(model({"x": x}).hidden, plain), forms
            at = moved(made).at()[0]
            want, now = by_formula(layer.fc1, x, at), model({"x": x}).hidden
            model.merge("main")
            merged = model({"x": x}).hidden
            alone = layer(x)
            model.unmerge("main")
            model.detach("main")
            again = layer(x)
            scale = max(1.0, float(want.abs().max()))
            worst = max(worst, *(float((y - want).abs().max()) / scale for y in (now, merged, alone)))
            assert torch.equal(again, plain) and (layer.fc1.bias is not None) == bias
    assert worst <= 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_training_on_a_long_batch_keeps_no_weight_of_its_own(bias):
    """W0 + W0 * A + B is made again in the backward pass; gradients are those of the formula."""
    torch.manual_seed(0)
    layer = Layer(bias).requires_grad_(False)
    model, x = Adapted(layer), torch.randn(3, 20, 7, requires_grad=True)
    made = moved(Adaptation.new(GLoRA(rank=RANK, targets="fc1"), layer))
    model.attach("main", made)
    made.requires_grad_(True)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), t)[1], lambda t: t):
        y = model({"x": x}).hidden
    assert not [t for t in held if t.shape == layer.fc1.weight.shape and t is not layer.fc1.weight]
    tensors = [x, *made.trainable().values()]
    grads = torch.autograd.grad(y.sin().sum(), tensors)
    wanted = torch.autograd.grad(by_formula(layer.fc1, x, made.at()[0]).sin().sum(), tensors)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_only_a_low_rank_b_is_lora_of_scale_one():
    layer = Layer(True)
    none = {"a": "none", "c": "none", "d": "none", "e": "none"}
    glora = moved(Adaptation.new(GLoRA(rank=RANK, targets="fc1", b="lora", **none), layer))
    lora = Adaptation.new(LoRA(rank=RANK, alpha=RANK, targets="fc1"), layer)
    mine, theirs = glora.at()[0], lora.at()[0]
    assert set(mine.values) == {"B1", "B2"}
    theirs.values["B"].data.copy_(mine.values["B1"])
    theirs.values["A"].data.copy_(mine.values["B2"])
    weight = layer.fc1.weight.detach()
    assert torch.equal(mine.part.delta(weight, mine.t(None)), theirs.part.delta(weight, theirs.t(None)))
    assert glora.counts() == lora.counts()


@pytest.mark.parametrize("name", ["vit", "llama", "gpt2"])
def test_whole_models_of_mixed_forms_merge(name):
    """20 random models over the three: a form of its own for every layer, biases made where there are none."""
    import random

    rng = random.Random(name)
    for turn in range(7):
        base = bed.base(name)
        method = GLoRA(rank=RANK)
        space = method.space([method.sites(structure_of(base))])
        made = Adaptation.new(method, base, layouts=space.layouts(space.drawn(rng)), seed=turn)
        if not made.trainable():
            continue
        bed.shaken(made, 0.05, turn)
        model = Adapted(base)
        model.attach("main", made)
        x = bed.batch(name)
        before = bed.result(model, x)
        model.merge("main")
        bed.close(bed.result(model, x), before, 1e-5)


def test_a_layer_without_a_bias_has_no_d_and_keys_no_shifts():
    structure = structure_of(bed.base("llama"))
    method = GLoRA()
    for site in method.sites(structure):
        layout = method.layout(site)
        assert layout["D"] == "none"
        assert (layout["E"] == "none") == site.role.endswith("attention.key")


def test_a_bias_that_a_merge_made_is_taken_away_again_and_other_rows_do_not_see_it():
    base = bed.base("llama")
    names = set(dict(base.named_parameters()))
    model = Adapted(base)
    model.attach("one", bed.shaken(Adaptation.new(GLoRA(rank=2), base), 0.1))
    model.attach("two", bed.shaken(Adaptation.new(LoRA(rank=2), base), 0.1))
    x = bed.batch("llama")
    with model.using("two"):
        alone = bed.result(model, x)
    model.merge("one")
    with model.using("two"):
        bed.close(bed.result(model, x), alone, 1e-5)  # another order of sums
    model.unmerge("one")
    assert set(dict(base.named_parameters())) == names


def test_a_form_that_there_is_none_of_is_refused():
    layer = Layer(True)
    made = Adaptation.new(GLoRA(rank=RANK, targets="fc1"), layer)
    card = made.card()
    card["layouts"]["0"]["fc1"]["A"] = "whole"
    with pytest.raises(FileFormatError, match="names a form"):
        Adaptation.from_card(card, layer)
    with pytest.raises(OptionError, match="rank=9 is above"):
        Adaptation.new(GLoRA(rank=9, targets="fc1"), layer)
