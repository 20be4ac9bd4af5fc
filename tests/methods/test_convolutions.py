"""Changes of convolutions (S210): what they are as kernels, on a U-Net with every kind of convolution, merged and by row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import luthier as lt
from luthier.errors import ModelError, SiteError
from luthier.host import Adaptation, Adapted
from luthier.host.bank import Bank
from luthier.sources.kernels import outer
from tests.host import bed

NAMES = ("LoRAC", "DoRAC", "ConvLoRA", "ConvDoRA", "CPLoRA", "CPDoRA")


class UNet(nn.Module):
    """Strides, groups, dilation and padding of two kinds; (rows, 2, 12, 12) -> (rows, 1, 12, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "first": nn.Conv2d(2, 6, 3, padding=1, padding_mode="reflect"),
                "down": nn.Conv2d(6, 8, (3, 2), stride=2, padding=(1, 0), groups=2),
            }
        )
        self.bottleneck = nn.Conv2d(8, 8, 3, padding="same", dilation=2, bias=False)
        self.norm = nn.GroupNorm(2, 8)
        self.decoder = nn.ModuleDict(
            {"up": nn.ConvTranspose2d(8, 6, 2, stride=2), "last": nn.Conv2d(12, 1, 3, padding=1)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = torch.tanh(self.encoder["first"](x))
        h = torch.tanh(self.encoder["down"](skip))
        h = torch.tanh(self.norm(self.bottleneck(h)))
        return self.decoder["last"](torch.cat([torch.tanh(self.decoder["up"](h)), skip], 1))


class Line(nn.Module):
    """(rows, 3, 16) -> (rows, 4, 8), by Conv1d."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 6, 5, padding=2), nn.Conv1d(6, 4, 3, stride=2, padding=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(x)))


def model(kind: type[nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    base = kind().eval().requires_grad_(False).double()
    return base, torch.randn(3, *((2, 12, 12) if kind is UNet else (3, 16)), dtype=torch.float64)


def parts(rank: int = 3) -> dict[str, lt.methods.Part]:
    made = {n: getattr(lt.methods, n)(rank=rank) for n in NAMES}
    return {**made, "spread": lt.methods.LoRAC(rank=rank, spread=True)}


@pytest.mark.parametrize("kind", [UNet, Line])
@pytest.mark.parametrize("name", parts())
@torch.no_grad()
def test_attached_equals_merged_and_begins_as_the_base(name: str, kind: type[nn.Module]) -> None:
    base, x = model(kind)
    want = base(x)
    adapted = Adapted(base)
    made = Adaptation.new(parts()[name], base).double()
    assert len(made.at()) == (4 if kind is UNet else 2)
    adapted.attach("main", made)
    assert (adapted({"x": x}).hidden - want).abs().max() <= 1e-6
    bed.shaken(made)
    attached = adapted({"x": x}).hidden
    assert not torch.allclose(attached, want, atol=1e-2)
    adapted.merge("main")
    assert torch.allclose(base(x), attached, atol=1e-10)
    adapted.unmerge("main")
    adapted.detach("main")
    assert torch.equal(base(x), want)


@pytest.mark.parametrize("name", parts())
def test_every_factor_has_moved_after_two_steps(name: str) -> None:
    base, x = model(UNet)
    adapted = Adapted(base)
    made = Adaptation.new(parts()[name], base)
    adapted.attach("main", made)
    base.float()
    before = {n: p.detach().clone() for n, p in made.trainable().items()}
    optimiser = torch.optim.SGD(made.trainable().values(), lr=0.1)
    for p in made.trainable().values():
        p.requires_grad_(True)
    for _ in range(2):
        (adapted({"x": x.float()}).hidden - 1).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert all((p - before[n]).abs().max() > 1e-7 for n, p in made.trainable().items())


def test_a_cp_change_is_the_sum_of_outer_products() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(4, n, generator=rng, dtype=torch.float64) for n in (5, 3, 2, 3))
    want = torch.zeros(5, 3, 2, 3, dtype=torch.float64)
    for r in range(4):
        for o in range(5):
            for i in range(3):
                for h in range(2):
                    for w in range(3):
                        want[o, i, h, w] += a[r, o] * b[r, i] * c[r, h] * d[r, w]
    assert torch.allclose(outer(a, b, [c, d]), want)


@torch.no_grad()
def test_a_spread_matrix_has_rows_of_outputs_and_heights() -> None:
    base, _ = model(UNet)
    part = lt.methods.LoRAC(rank=2, alpha=2.0, spread=True)
    made = bed.shaken(Adaptation.new(part, base)).double()
    at = made.at()[1]
    weight = base.get_submodule(at.site.path).weight  # (8, 3, 3, 2)
    matrix, change = at.values["B"] @ at.values["A"], part.delta(weight, at.t(None))
    assert matrix.shape == (8 * 3, 3 * 2)
    for o, i, h, w in ((0, 0, 0, 0), (7, 2, 2, 1), (4, 1, 2, 0)):
        assert torch.isclose(change[o, i, h, w], matrix[o * 3 + h, i * 2 + w])


@torch.no_grad()
def test_conv_lora_is_lora_c_with_the_same_numbers() -> None:
    base, x = model(UNet)
    one, two = (Adaptation.new(parts()[n], base).double() for n in ("LoRAC", "ConvLoRA"))
    bed.shaken(one)
    for a, b in zip(one.at(), two.at()):
        b.values["A"].copy_(a.values["A"].view_as(b.values["A"]))
        b.values["B"].copy_(a.values["B"])
    adapted = Adapted(base)
    with adapted.attached(one):
        want = adapted({"x": x}).hidden
    with adapted.attached(two):
        assert torch.allclose(adapted({"x": x}).hidden, want)


@torch.no_grad()
def test_the_channels_of_a_dora_form_have_the_lengths_that_train() -> None:
    base, _ = model(UNet)
    for name in ("DoRAC", "ConvDoRA", "CPDoRA"):
        adapted = Adapted(base)
        made = bed.shaken(Adaptation.new(parts()[name], base)).double()
        adapted.attach("main", made)
        adapted.merge("main")
        for at in made.at():
            weight = base.get_submodule(at.site.path).weight
            assert torch.allclose(weight.flatten(1).norm(dim=1), at.values["m"].abs())
        adapted.unmerge("main")


def test_counts_are_those_of_the_page() -> None:
    base = nn.Sequential(nn.Conv2d(6, 10, 3)).requires_grad_(False)
    o, i, k, r = 10, 6, 3, 3
    want = {
        "LoRAC": r * (o + i * k * k), "ConvLoRA": r * (o + i * k * k), "CPLoRA": r * (o + i + 2 * k), "spread": r * (o * k + i * k),
    }  # fmt: skip
    want |= {"DoRAC": want["LoRAC"] + o, "ConvDoRA": want["ConvLoRA"] + o, "CPDoRA": want["CPLoRA"] + o}
    assert {n: Adaptation.new(p, base).counts()["method"] for n, p in parts().items()} == want


def test_targets_are_parts_of_the_u_net() -> None:
    base, _ = model(UNet)

    def at(targets: str) -> list[str]:
        return [a.site.name for a in Adaptation.new(lt.methods.CPLoRA(targets=targets), base).at()]

    assert at("conv") == ["encoder.first", "encoder.down", "bottleneck", "decoder.last"]
    assert at("encoder.*") == ["encoder.first", "encoder.down"]
    assert at("*bottleneck* | decoder.*") == ["bottleneck", "decoder.last"]  # not the transposed one
    with pytest.raises(SiteError, match="No site matches 'norm'"):
        at("norm")
    with pytest.raises(SiteError, match="No site matches"):
        at("middle.*")
    with pytest.raises(ModelError, match="edits linear weights"):
        Adapted(base).attach("a", Adaptation.new(lt.methods.LoRA(rank=1, targets="bottleneck"), base))


@pytest.mark.parametrize("kind", [UNet, Line])
@pytest.mark.parametrize("name", parts())
@torch.no_grad()
def test_a_bank_gives_every_row_its_own(name: str, kind: type[nn.Module]) -> None:
    base, x = model(kind)
    held = {k: bed.shaken(Adaptation.new(parts()[name], base), seed=i).double() for i, k in enumerate("ab")}
    adapted = Adapted(base)
    bank = Bank(base, held).double()
    route = ["b", "a", "b"]
    with adapted.attached(bank.adaptation):
        together = bank(adapted, {"x": x}, route).hidden
    for i, key in enumerate(route):
        with adapted.attached(held[key]):
            alone = adapted({"x": x[i : i + 1]}).hidden
        assert torch.allclose(together[i : i + 1], alone)
    assert not torch.allclose(together, adapted({"x": x}).hidden, atol=1e-2)
