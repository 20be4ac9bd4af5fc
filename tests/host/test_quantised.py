"""A quantised base is refused before training by everything that changes weights, and by nothing else."""

import pytest
import torch
from torch import nn

import luthier as lt
from luthier.errors import ModelError
from luthier.host import Adaptation, Adapted
from luthier.host.applicable import builds
from luthier.host.places.weight import Weighted
from luthier.host.sizing import sized
from luthier.host.structure import structure_of
from tests.conformance.cells import Cell, parts
from tests.host import bed


class Int8(nn.Linear):
    """Weights as integers with a scale for each output, as quantising libraries keep them."""

    def __init__(self, of: nn.Linear):
        super().__init__(of.in_features, of.out_features, bias=of.bias is not None)
        self.bias = of.bias
        scale = of.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter((of.weight.detach() / scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class Packed(Int8):
    """Two numbers in a byte, in a column: the weight's shape is not the layer's."""

    def __init__(self, of: nn.Linear):
        super().__init__(of)
        self.register_buffer("whole", self.weight.detach())
        low = (self.whole.flatten().to(torch.int16) + 128 >> 4).to(torch.uint8)
        self.weight = nn.Parameter((low[::2] << 4 | low[1::2])[:, None], requires_grad=False)

    def forward(self, x):
        low = torch.stack([self.weight >> 4, self.weight & 15], -1).flatten().to(x.dtype) * 16 - 120
        return nn.functional.linear(x, low.view(self.out_features, -1) * self.scale, self.bias)


class Beside(Int8):
    """No weight: the integers are a buffer."""

    def __init__(self, of: nn.Linear):
        super().__init__(of)
        weight = self.weight.detach()
        del self.weight
        self.register_buffer("qweight", weight)

    def forward(self, x):
        return nn.functional.linear(x, self.qweight.to(x.dtype) * self.scale, self.bias)


class Said(torch.Tensor):
    """Says that it is float32, and that it can be dequantised."""

    def dequantize(self):
        return self.as_subclass(torch.Tensor)


class Subclassed(nn.Linear):
    def __init__(self, of: nn.Linear):
        super().__init__(of.in_features, of.out_features, bias=of.bias is not None)
        self.bias = of.bias
        self.weight = nn.Parameter(of.weight.detach().clone().as_subclass(Said), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.dequantize(), self.bias)


class Eighths(nn.Linear):
    """8-bit floats."""

    def __init__(self, of: nn.Linear):
        super().__init__(of.in_features, of.out_features, bias=of.bias is not None)
        self.bias = of.bias
        self.weight = nn.Parameter(of.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


KINDS = {"int8": Int8, "uint8": Packed, "qweight": Beside, "Said": Subclassed, "float8_e4m3fn": Eighths}


def quantised(kind=Int8, name="bert"):
    base = bed.base(name)
    for path, module in list(base.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in path:
            base.set_submodule(path, kind(module))
    return base


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_says_where_how_and_what_to_do(kind):
    base = quantised(KINDS[kind])
    with pytest.raises(ModelError, match=rf"lora changes weights, but encoder.layer.0.*quantised.*{kind}.*half.*adapter"):  # fmt: skip
        Adaptation.new(lt.methods.LoRA(rank=4), base)
    with pytest.raises(ModelError, match="quantised"):
        sized(lt.methods.LoRA(rank=4), base, "params=5%")


METHODS = [m for m in parts() if "+" not in m and Cell(m, "bert").why_not() is None]


def linear_sites(part, base):
    """Whether a part changes the weight of a linear layer here, or makes a network of them."""
    if builds(part):
        return True
    where = part.sites(structure_of(base)) if isinstance(part, Weighted) else []
    return any(isinstance(base.get_submodule(s.path), nn.Linear) for s in where)


@pytest.mark.parametrize("name", METHODS)
def test_every_change_of_a_weight_is_refused_and_nothing_else_is(name):
    cell, base = Cell(name, "bert"), quantised()
    members = cell.members(cell.base())
    changed = any(linear_sites(p, base) for p in cell.part.parts())
    before = {k: v.clone() for k, v in base.state_dict().items()}
    if changed:
        with pytest.raises(ModelError, match=r"(changes|copies) weights, but .* is quantised"):
            Adaptation.new(cell.part, base, members=members, unfilled=True)
    else:
        made = Adaptation.new(cell.part, base, members=members, unfilled=True)
        assert made.trainable() or not made.at()
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())


def test_both_kinds_are_there():
    base = quantised()
    kinds = {any(linear_sites(p, base) for p in Cell(m, "bert").part.parts()) for m in METHODS}
    assert kinds == {True, False}


def test_an_adaptation_of_the_full_base_is_not_attached_and_its_card_not_read():
    made = Adaptation.new(lt.methods.LoRA(rank=4), bed.base("bert"))
    model = Adapted(quantised())
    with pytest.raises(ModelError, match="quantised"):
        model.attach("a", made)
    with pytest.raises(ModelError, match="quantised"):
        Adaptation.from_card(made.card(), quantised())


@pytest.mark.parametrize("kind", KINDS)
def test_what_leaves_weights_alone_trains_beside_a_quantised_base(kind):
    model = Adapted(quantised(KINDS[kind]))
    made = Adaptation.new(lt.methods.PromptTuning(length=3), model.base)
    model.attach("a", made)
    model(bed.batch("bert")).hidden.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in made.trainable().values())
