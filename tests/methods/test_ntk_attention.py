"""NTK-Attention: the formula, its masks and padding, grouped heads, and what a prefix comes to."""

from __future__ import annotations

from dataclasses import replace
from math import factorial

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.bank import Bank
from luthier.methods.prefixes.ntk_attention import NTKAttention, of_prefix
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.prompt import Prompt
from luthier.sources import kernel
from luthier.starts.prefix_kernel import PrefixKernel
from tests.host import bed

MODELS = ("bert", "llama", "gpt2", "t5", "vit")


def prefixed(q, k, v, pk, pv, scaling):
    """Attention over a prefix and the content, for one head; by the definition."""
    scores = torch.cat([q @ pk.mT, q @ k.mT], -1) * scaling
    return scores.softmax(-1) @ torch.cat([pv, v], -2)


@pytest.mark.parametrize("size", [1.0, 100.0, -100.0])
def test_without_a_prefix_it_is_the_base_also_for_large_scores(size):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 7, 4, generator=rng) for _ in range(3))
    scores = (q @ k.mT) * 0.5
    scores = scores / scores.abs().max() * abs(size) + (size if size < 0 else 0)
    out, mass = scores.softmax(-1) @ v, scores.logsumexp(-1)
    got = kernel.joined(out, mass, torch.zeros_like(out), torch.zeros_like(mass))
    if size > -1:
        assert (got - out).abs().max() <= 1e-6
    top, bottom = torch.full_like(out, 0.3), torch.full_like(mass, 0.1)
    mixed = kernel.joined(out, mass, top, bottom)
    exact = (mass.double().exp()[..., None] * out + top) / (mass.double().exp() + 0.1)[..., None]
    assert torch.isfinite(mixed).all()
    torch.testing.assert_close(mixed, exact.float(), rtol=1e-5, atol=1e-6)


def test_a_query_that_sees_nothing_keeps_what_it_had():
    out, mass = torch.ones(2, 3, 4), torch.full((2, 3), torch.finfo(torch.float32).min / 2)
    top, bottom = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    assert torch.equal(kernel.joined(out, mass, top, bottom), out)
    half = kernel.joined(out, mass, top + 2.0, bottom + 4.0)
    assert torch.equal(half, torch.full_like(out, 0.5))


@pytest.mark.parametrize("degree", range(1, 7))
def test_taylor_features_are_the_polynomial(degree):
    rng = torch.Generator().manual_seed(degree)
    x, y = torch.randn(2, 5, 3, dtype=torch.float64, generator=rng).unbind(0)
    made = kernel.taylor_features(x, degree)
    assert made.shape == (5, kernel.count(3, degree))
    product = (x * y).sum(-1)
    want = sum(product**i / factorial(i) for i in range(degree + 1))
    torch.testing.assert_close((made * kernel.taylor_features(y, degree)).sum(-1), want)
    assert torch.equal(kernel.features(x, kernel.count(3, degree)), made)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_long_polynomial_is_the_prefix_itself(name):
    """In every architecture, under its masks, padding, position biases and grouped heads: degree 6 of small keys."""
    base = bed.base(name).double()
    method = PTuningV2(length=5, targets=f"{targets(name)}[0]")
    prefix = bed.shaken(Adaptation.new(method, base), 0.3).to(torch.float64)
    for at in prefix.at():
        at.values["K"].mul_(0.02)
    made = of_prefix(prefix, base, features="taylor", degree=6 if name == "t5" else 4).to(torch.float64)
    model, batch, found = Adapted(base), double(bed.batch(name)), []
    alone = bed.result(model, batch)
    for each in (prefix, made):
        with model.attached(each):
            found.append(bed.result(model, batch))
    bed.close(found[1], found[0], 1e-6)
    assert (found[0] - alone).abs().max() > 1e-2


def targets(name):
    return "cross_attention" if name == "t5" else "attention"


def double(batch):
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_formula_in_every_layer(name, monkeypatch):
    """Against attention written out, head by head, from what each layer's attention read."""
    base = bed.base(name).double()
    made = bed.shaken(Adaptation.new(NTKAttention(), base)).to(torch.float64)
    model, seen = Adapted(base), []
    model.attach("main", made)
    plain = NTKAttention.attend

    def attend(self, a, out, t, ctx):
        got = plain(self, a, out, t, ctx)
        seen.append((a, out, t, got))
        return got

    monkeypatch.setattr(NTKAttention, "attend", attend)
    bed.result(model, double(bed.batch(name)))
    assert len(seen) == len(made.at())
    for a, out, t, got in seen:
        heads, kv = a.q.shape[1], a.k.shape[1]
        for h in range(heads):
            g = h // (heads // kv)
            scores = a.q[:, h] @ a.k[:, g].mT * a.scaling
            if a.position_bias is not None:
                scores = scores + a.position_bias[:, h]
            visible = torch.ones_like(scores, dtype=torch.bool)
            if a.mask is not None:
                mask = a.mask.expand(len(scores), -1, -1, -1)[:, 0]
                visible = mask if mask.dtype == torch.bool else mask > -1e4
            e = scores.exp() * visible
            torch.testing.assert_close(  # what the base computed is softmax over what is visible
                out[:, :, h][visible.any(-1)], ((e @ a.v[:, g]) / e.sum(-1, True))[visible.any(-1)]
            )
            phi = torch.nn.functional.elu(a.q[:, h] * a.scaling**0.5) + 1
            want = (e @ a.v[:, g] + phi @ t.Z[g]) / (e.sum(-1) + phi @ t.k[g].abs())[..., None]
            torch.testing.assert_close(got[:, :, h], want)


def test_both_train_from_the_start():
    model = bed.adapted(NTKAttention(), "llama", shake=False)
    made = model.adaptations["main"]
    before = {n: p.detach().clone() for n, p in made.trainable().items()}
    optimiser = torch.optim.AdamW(made.trainable().values(), lr=1e-3)
    for _ in range(10):
        optimiser.zero_grad()
        bed.result(model, bed.batch("llama")).float().pow(2).mean().backward()
        optimiser.step()
    assert all((p != before[n]).all() for n, p in made.trainable().items())
    assert {n.rpartition(".")[2] for n in before} == {"Z", "k"}


def test_it_begins_as_a_drawn_prefix_of_any_length():
    base = bed.base("bert")
    for length in (1, 30):
        made = Adaptation.new(NTKAttention(start=PrefixKernel(length=length)), base, seed=4)
        prefix = Adaptation.new(PTuningV2(length=length), base, seed=4)
        for a, b in zip(made.at(), of_prefix(prefix, base).at(), strict=True):
            for name in ("Z", "k"):
                torch.testing.assert_close(a.values[name], b.values[name])
    carrier = Prompt(carrier="kernel", length=30).parts()[0]
    assert torch.equal(Adaptation.new(carrier, base, seed=4).at()[0].values["Z"], made.at()[0].values["Z"])


def test_a_bank_serves_each_row_its_own():
    base = bed.base("llama")
    each = {n: bed.shaken(Adaptation.new(NTKAttention(), base), seed=i) for i, n in enumerate("abc")}
    batch, bank, model = bed.batch("llama"), Bank(base, each), Adapted(base)
    with torch.no_grad():
        with model.attached(bank.adaptation):
            got = bank(model, batch, list("cabc")).logits
        for i, name in enumerate("cabc"):
            with model.attached(each[name]):
                bed.close(got[i : i + 1], model({k: v[i : i + 1] for k, v in batch.items()}).logits, 1e-5)


def test_what_does_not_fit_is_refused():
    base = bed.base("bert")
    with pytest.raises(OptionError, match="Lower the degree"):
        Adaptation.new(NTKAttention(features="taylor", degree=9), base)
    with pytest.raises(OptionError, match="no keys and values"):
        of_prefix(Adaptation.new(NTKAttention(), base), base)
    assert replace(NTKAttention(), degree=3).number(8) == 8
