"""Compacter: projections as sums of Kronecker products, with the left factors shared by all layers."""

import pytest
import torch
from torch.nn import functional as F

import luthier as lt
from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.sources.phm import PHM
from luthier.sources.settle import settled
from tests.host import bed


def compacter(**options):
    return lt.methods.Compacter(width=8, **options)


def written_out(a, s, t):
    return sum(torch.kron(a[i], s[i] @ t[i]) for i in range(len(a)))


@pytest.mark.parametrize("rank", [1, 2])
def test_an_adapter_adds_what_its_projections_written_out_add(rank):
    model = bed.adapted(compacter(source=PHM(pieces=4, rank=rank), targets="mlp.down[0]"), "bert")
    placed = model.adaptations["main"].placed()[0]
    (at,), a = placed.ats(), placed.common["A"]
    v = at.values
    x = bed.batch("bert")
    got = []
    at_site = model.base.get_submodule(at.site.path)
    before = at_site.register_forward_hook(
        lambda m, args, out: got.append(F.linear(args[0], m.weight, m.bias))
    )
    after = at_site.register_forward_hook(lambda m, args, out: got.append(out))
    with torch.no_grad():
        model(x)
    before.remove(), after.remove()
    h, changed = got
    down, up = (written_out(a, v[f"{n}_s"], v[f"{n}_t"]) for n in ("down", "up"))
    want = h + F.linear(F.gelu(F.linear(h, down, v["down_bias"])), up, v["up_bias"])
    assert not torch.allclose(changed, h, atol=1e-2)
    assert torch.allclose(changed, want, atol=1e-5)


def test_the_slow_weights_are_one_tensor_and_the_count_is_the_papers():
    model = lt.load("builtin:minilm")
    made = Adaptation.new(lt.methods.Compacter(width=32), model.base)
    d, k, n, sites = 384, 32, 4, 12
    names = [name for name in made.trainable() if name.endswith("common.A")]
    assert len(names) == 1
    assert made.counts()["method"] == n**3 + sites * (2 * (d + k) + d + k)
    adapter = Adaptation.new(lt.methods.Adapter(width=32, targets=lt.methods.Compacter().targets), model.base)
    assert made.counts()["method"] < 0.06 * adapter.counts()["method"]


def test_the_projection_down_has_the_variance_that_its_start_draws():
    base = lt.load("builtin:minilm").base
    for rank in (1, 4):
        made = Adaptation.new(lt.methods.Compacter(source=PHM(pieces=4, rank=rank)), base)
        at = made.at()[0]
        assert not at.t(None).up.any()
        spread = torch.stack([a.t(None).down for a in made.at()]).std() * 384**0.5
        assert 0.75 * 3**-0.5 < spread < 1.25 * 3**-0.5


def test_it_settles_to_an_adapter_that_says_the_same():
    model = bed.adapted(compacter(), "llama")
    made, x = model.adaptations["main"], bed.batch("llama")
    with torch.no_grad():
        want = model(x).logits
        plain = Adapted(bed.base("llama"))
        plain.attach("main", settled(made, plain.base))
        assert torch.allclose(plain(x).logits, want, atol=1e-5)


def test_what_does_not_divide_or_is_not_drawn_is_refused():
    base = bed.base("bert")
    with pytest.raises(OptionError, match="does not divide 6 x 32"):
        Adaptation.new(lt.methods.Compacter(width=6), base)
    with pytest.raises(OptionError, match="rank=9 is above"):
        Adaptation.new(compacter(source=PHM(rank=9)), base)
    held = Adaptation.new(lt.methods.LoRA(rank=4, targets="attention.query"), base)
    bed.shaken(held)
    from luthier.starts.carried import Carried

    values = {s.site.name: {"carried": dict(s.values)} for s in held.at()}
    with pytest.raises(OptionError, match="not drawn"):
        Adaptation.new(
            lt.methods.LoRA(rank=4, targets="attention.query", source=PHM(), start=Carried()),
            base,
            statistics=values,
        )
