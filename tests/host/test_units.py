"""Units that are left out: as zeros, as smaller weights, and as a smaller copy of the model, with the same outputs."""

from __future__ import annotations

import copy

import pytest
import torch

from luthier.errors import FileFormatError, ModelError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.applicable import Reason
from luthier.host.bank import Bank
from luthier.host.files import load, save
from luthier.host.narrow import smaller
from luthier.host.part import method
from luthier.host.places.units import UnitCut, entries_of, exit_of, keep, units
from luthier.host.structure import structure_of
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prompts.skip import Skip
from tests.host import bed


@method("left_out")
class LeftOut(UnitCut):
    """The place by itself."""


NAMES = ["bert", "llama", "gpt2", "t5", "vit"]


def cut(base, part, share=0.5, seed=0, index=0):
    """An adaptation that leaves out random units."""
    made, rng = Adaptation.new(part, base), torch.Generator().manual_seed(seed)
    kept = {}
    for at in made.at(index):
        n = units(at.site)
        kept[at.site.name] = torch.randperm(n, generator=rng)[: max(1, round(n * share))].sort().values
    keep(made, index, kept)
    return made


def zeroed(base, made, x, index=0):
    """What the base says with these activations set to 0 by hooks of our own."""
    structure, handles = structure_of(base), []
    for at in made.at(index):
        down = exit_of(structure, at.site)
        stays = torch.zeros(units(at.site))
        stays[at.values["kept"]] = 1
        stays = stays.repeat_interleave(down.in_features // units(at.site))
        module = base.get_submodule(down.path)
        handles.append(module.register_forward_pre_hook(lambda m, a, stays=stays: (a[0] * stays,)))
    got = bed.result(Adapted(base), x)
    for handle in handles:
        handle.remove()
    return got


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["mlp.down", "attention", "mlp.down | attention"])
@torch.no_grad()
def test_attached_and_copied_equal_the_dense_model_with_zeros(name, where):
    base, x = bed.base(name), bed.batch(name)
    made = cut(base, LeftOut(targets=where))
    want, model = zeroed(base, made, x), Adapted(base)
    assert not torch.allclose(want, bed.result(model, x), atol=1e-3)
    with model.attached(made):
        bed.close(bed.result(model, x), want, 1e-5)
    if name == "t5" and "attention" in where:
        with pytest.raises(ModelError, match="share a table of positions"):
            smaller(base, made)
        return
    before = {k: v.clone() for k, v in base.state_dict().items()}
    small, rest = smaller(base, made)
    assert all(torch.equal(before[k], v) for k, v in base.state_dict().items())
    bed.close(bed.result(Adapted(small), x), want, 1e-5)
    again = Adapted(small)
    with again.attached(rest):
        bed.close(bed.result(again, x), want, 1e-5)
    count = {m: sum(p.numel() for p in b.parameters()) for m, b in (("base", base), ("small", small))}
    gone = 0
    for at in made.at():
        down, left = exit_of(structure_of(base), at.site), len(at.values["kept"])
        width = down.in_features // units(at.site)
        layers = (
            entries_of(structure_of(base), down)
            if at.site.role == "mlp.down"
            else [structure_of(base).partner(at.site, f"attention.{k}") for k in ("query", "key", "value")]
        )
        for s in layers:
            biased = "bias" in dict(base.get_submodule(s.path).named_parameters(recurse=False))
            each = s.out_features // units(at.site)
            gone += (units(at.site) - left) * each * (s.in_features + biased)
        gone += (units(at.site) - left) * width * down.out_features
    assert count["base"] - count["small"] == gone > 0


@torch.no_grad()
def test_a_feed_forward_layer_multiplies_what_is_kept_and_no_more(monkeypatch):
    import luthier.host.places.units as place

    seen = []
    linear = place.F.linear

    class Seen:
        @staticmethod
        def linear(x, weight, bias):
            seen.append(tuple(weight.shape))
            return linear(x, weight, bias)

    base = bed.base("llama")
    model, made = Adapted(base), cut(base, LeftOut(targets="mlp.down"), share=20 / 64)
    model.attach("main", made)
    monkeypatch.setattr(place, "F", Seen)
    bed.result(model, bed.batch("llama"))
    assert seen == 3 * [(20, 32), (20, 32), (32, 20)]
    seen.clear()
    model.attach("other", Adaptation.new(LoRA(rank=2, targets="mlp.up"), base))
    bed.result(model, bed.batch("llama"))
    assert not seen  # what knows all units is shown all of them


@pytest.mark.parametrize("name", ["bert", "llama"])
@torch.no_grad()
def test_beside_a_change_of_the_same_layers_it_is_still_zeros(name):
    base, x = bed.base(name), bed.batch(name)
    made = cut(base, LeftOut(targets="mlp.down"))
    other = bed.shaken(Adaptation.new(LoRA(rank=2, targets="mlp.up | mlp.down"), base))
    model = Adapted(base)
    model.attach("cut", made)
    model.attach("other", other)
    got = bed.result(model, x)
    small, _ = smaller(base, made)
    fewer = Adapted(small)
    there = Adaptation.new(LoRA(rank=2, targets="mlp.up | mlp.down"), small)
    for at, old in zip(there.at(), other.at(), strict=True):
        kept = made.at()[at.site.layer].values["kept"]
        at.values["A"].copy_(old.values["A"][:, kept] if at.site.role == "mlp.down" else old.values["A"])
        at.values["B"].copy_(old.values["B"] if at.site.role == "mlp.down" else old.values["B"][kept])
    with fewer.attached(there):
        bed.close(got, bed.result(fewer, x), 1e-5)


@torch.no_grad()
def test_rows_and_banks_and_coefficients():
    base, x = bed.base("bert"), bed.batch("bert")
    first, second = (cut(base, LeftOut(targets="mlp.down"), seed=s) for s in (1, 2))
    model = Adapted(base)
    alone = bed.result(model, x)
    with model.attached(first):
        one = bed.result(model, x)
    with model.attached(second):
        two = bed.result(model, x)
    model.attach("first", first)
    model.attach("second", second)
    mixed = bed.result(model, {**x, "adaptation": ["first", None, "second", "first"]})
    bed.close(mixed, torch.stack([one[0], alone[1], two[2], one[3]]), 1e-5)
    model.detach()
    bank = Bank(base, {"first": first, "second": second})
    with model.attached(bank.adaptation):
        got = bank(model, x, ["second", "first", "first", "second"]).hidden * x["attention_mask"][:, :, None]
    bed.close(got, torch.stack([two[0], one[1], one[2], two[3]]), 1e-5)
    with model.attached(0.0 * first):
        bed.close(bed.result(model, x), alone, 1e-6)


@torch.no_grad()
def test_weights_that_change_are_cut_again():
    base, x = bed.base("bert"), bed.batch("bert")
    made, model = cut(base, LeftOut(targets="mlp.down")), Adapted(base)
    model.attach("main", made)
    bed.result(model, x)
    base.get_submodule("encoder.layer.1.output.dense").weight.mul_(0.5)
    got = bed.result(model, x)
    model.detach()
    bed.close(got, zeroed(base, made, x), 1e-5)


@torch.no_grad()
def test_a_square_feed_forward_layer_of_bert_has_its_own_roles():
    """Cut to the width of the model, its two layers differ by the names of what holds them alone."""
    base = bed.base("bert")
    small, _ = smaller(base, cut(base, LeftOut(targets="mlp.down")))
    roles = {s.name: s.role for s in structure_of(small).sites}
    assert (
        small.get_submodule("encoder.layer.0.output.dense").in_features
        == bed.WIDTH
        == small.config.hidden_size
    )
    assert roles["encoder.layer.0.intermediate.dense"] == "mlp.up"
    assert roles["encoder.layer.0.output.dense"] == "mlp.down"


@torch.no_grad()
def test_a_file_with_indices_outside_the_layer_is_refused(tmp_path):
    base = bed.base("bert")
    made = cut(base, Skip(length=3), index=1)
    save(made, tmp_path / "good", "b" * 64)
    assert torch.equal(
        load(tmp_path / "good", base, "b" * 64).at(1)[0].values["kept"], made.at(1)[0].values["kept"]
    )
    bad = copy.deepcopy(made)
    bad.at(1)[0].values["kept"][0] = -1
    save(bad, tmp_path / "bad", "b" * 64)
    with pytest.raises(FileFormatError, match=r"outside 0\.\.63"):
        load(tmp_path / "bad", base, "b" * 64)


def test_what_has_no_units_is_refused():
    base = bed.base("bert")
    with pytest.raises(OptionError, match=r"hidden units at mlp\.down"):
        Adaptation.new(LeftOut(targets="mlp.up"), base)
    with pytest.raises(ModelError, match="cuts nothing"):
        smaller(base, Adaptation.new(LoRA(), base))
    from luthier.errors import SiteError

    with pytest.raises(SiteError) as raised:
        Adaptation.new(LeftOut(targets="mlp.down"), bed.base("mamba"))
    assert raised.value.reason is Reason.NO_SITE
