"""Prompts made from the input (ID-SPAM, IAPT, retrieved ones): their formulas, and that neither answers nor padding reach them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

from luthier.errors import ModelError, OptionError, RunError
from luthier.host import Adaptation, Adapted
from luthier.host.bank import Bank
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.iapt import IAPT
from luthier.methods.prompts.id_spam import IDSPAM
from luthier.methods.prompts.prompt import Prompt
from luthier.methods.prompts.retrieved_prompt import RetrievedPrompt
from luthier.sources.pooled import GELU_ABOVE, GELU_BELOW, Pooled, rational
from luthier.sources.retrieved import Retrieved
from luthier.sources.self_attention import SelfAttention
from luthier.sources.settle import settled
from tests.host import bed

METHODS = {
    "id_spam": IDSPAM(length=3, source=SelfAttention(bottleneck=16)),
    "id_spam without attention": IDSPAM(length=3, source=SelfAttention(bottleneck=16, attention=False)),
    "iapt": IAPT(length=3, source=Pooled(inner=6)),
    "iapt by two": IAPT(length=3, source=Pooled(inner=6, share=2)),
    "retrieved": RetrievedPrompt(length=3, source=Retrieved(entries=9, k=2)),
    "deep self_attention": Prompt(carrier="deep", length=3, source=SelfAttention(bottleneck=16)).parts()[0],
}
MODELS = ("bert", "llama", "gpt2", "t5", "mamba")


@torch.no_grad()
def prompts(model, batch):
    """What every site's prompt is in one forward, in order, and the logits."""
    made, kept = model.adaptations["main"], []
    source = type(made.placed()[0].part.source)
    plain = source.make

    def make(self, part, site, t, ctx, prepared=None):
        found = plain(self, part, site, t, ctx, prepared)
        kept.append((site, found["P"], ctx.entering.get(site.tower)))
        return found

    source.make = make
    try:
        out = model(batch)
    finally:
        source.make = plain
    return kept, out


def adapted(method, name):
    model = Adapted(bed.base(name))
    model.attach("main", bed.shaken(Adaptation.new(method, model.base)))
    return model


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_answer_and_padding_do_not_reach_the_prompt(name, method):
    """Bitwise, at every block; one token of the instruction does. Marked by labels, and said outright."""
    model, batch = adapted(method, name), bed.batch(name)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = torch.full_like(ids, -100)
    labels[:, 6:] = ids[:, 6:]
    told = torch.ones_like(ids)
    told[:, 6:] = 0
    answered = ids.clone()
    answered[:, 6:] = (ids[:, 6:] + 7) % 30 + 2
    padded = torch.where(mask == 0, (ids + 5) % 30 + 2, ids)
    asked = ids.clone()
    asked[:, 5] = (ids[:, 5] + 7) % 30 + 2

    def at(ids, how):
        marked = {"labels": torch.where(labels == -100, labels, ids)} if how else {"instruction": told}
        return [p for _, p, _ in prompts(model, {"input_ids": ids, "attention_mask": mask, **marked})[0]]

    for how in (True, False):
        want = at(ids, how)
        assert len(want) == len(model.adaptations["main"].at()) and want[0].shape == (4, 3, 32)
        for other in (answered, padded):
            assert not torch.equal(other, ids)
            assert all(torch.equal(a, b) for a, b in zip(want, at(other, how), strict=True))
        assert all((a - b).abs().amax((1, 2)).min() > 1e-4 for a, b in zip(want, at(asked, how), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(at(ids, True), at(ids, False), strict=True))
    plain = [p for _, p, _ in prompts(model, batch)[0]]
    assert not torch.equal(plain[0], want[0])  # nothing is marked: all of it is the instruction


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_self_attention_is_its_formula_row_by_row(name):
    model, batch = adapted(METHODS["id_spam"], name), bed.batch(name)
    [(site, got, _), *rest], _ = prompts(model, batch)
    t = model.adaptations["main"].at()[0].values
    table = model.base.get_input_embeddings().weight
    assert site.role == "embedding" and not rest and got.shape == (4, 3, 32)
    for ids, mask, mine in zip(batch["input_ids"], batch["attention_mask"], got, strict=True):
        e = table[ids[mask.bool()]]
        scores = (e @ t["Wq"].T) @ (e @ t["Wk"].T).T / 32**0.5
        pooled = (scores.softmax(-1) @ e @ t["Wv"].T).mean(0)
        want = (t["Wu"] @ (t["Wd"] @ pooled).clamp(min=0)).view(3, 32)
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-5)
    assert (got[0] - got[2]).abs().max() > 1e-2  # two inputs, two prompts


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("which", ["iapt", "iapt by two"])
def test_pooling_is_its_formula_at_every_block(name, which):
    model, batch = adapted(METHODS[which], name), bed.batch(name)
    found, _ = prompts(model, batch)
    placed = model.adaptations["main"].placed()[0]
    blocks = len(model.structure.towers[0].blocks)
    assert [s.layer for s, _, _ in found] == [None, *range(1, blocks)]
    for i, (site, got, h) in enumerate(found):
        g = i // 2 if "two" in which else 0
        down, queries, up = (placed.common[f"{k}_{g}"] for k in ("Wd", "Q", "Wu"))
        own = placed.ats()[i].values
        assert placed.ats()[i].site == site
        for x, mask, mine in zip(h, batch["attention_mask"], got, strict=True):
            z = x[mask.bool()] @ down.T
            pooled = (queries @ z.T / 6**0.5).softmax(-1) @ z
            a, b = own["a"].double(), own["b"].double()
            p = sum(a[j] * pooled.double() ** j for j in range(7))
            q = 1 + sum(b[j] * pooled.double() ** (j + 1) for j in range(5)).abs()
            torch.testing.assert_close(mine, (p / q).float() @ up.T, rtol=1e-3, atol=1e-4)


def test_the_rational_function_starts_as_gelu_and_has_no_pole():
    above, below = torch.tensor(GELU_ABOVE), torch.tensor(GELU_BELOW)
    x = torch.linspace(-5, 5, 2001)
    assert (rational(x, above, below) - gelu(x)).abs().max() < 1e-2
    wide = torch.linspace(-50, 50, 10001)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.isfinite(rational(wide.to(dtype), above, below)).all()
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        a, b = torch.randn(7, generator=rng), torch.randn(5, generator=rng)
        assert torch.isfinite(rational(wide, a, b)).all()
    assert rational(torch.tensor(2.0), torch.ones(7), torch.ones(5)) == pytest.approx(127 / 63)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_generation_reads_only_what_was_given(name, method):
    model, batch = adapted(method, name), bed.batch(name)
    written = {k: batch[k] for k in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 6, "do_sample": False}
    cached = model.generate(**written, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**written, **options, use_cache=False))
    bare = model.generate(written["input_ids"][:1], **options, use_cache=True)
    assert torch.equal(bare, model.generate(written["input_ids"][:1], **options, use_cache=False))
    if name != "t5":
        said = torch.cat([torch.ones(4, 7), torch.zeros(4, 2)], 1).long()
        with model.given(instruction=said):
            other = model.generate(**written, **options, use_cache=True)
            assert torch.equal(other, model.generate(**written, **options, use_cache=False))


@torch.no_grad()
def test_labels_that_are_no_tokens_of_the_input_mark_nothing():
    """Tags of an encoder's or a decoder's tokens, and what another tower writes."""
    for name in ("bert", "llama", "t5"):
        model, batch = adapted(METHODS["id_spam"], name), bed.batch(name)
        want = prompts(model, batch)[0][0][1]
        tags = torch.full_like(batch["input_ids"], -100)
        tags[:, ::2] = 1
        assert torch.equal(prompts(model, {**batch, "labels": tags})[0][0][1], want)


@torch.no_grad()
def test_what_a_source_from_the_input_cannot_do_is_refused():
    base = bed.base("llama")
    with pytest.raises(OptionError, match="carrier=deep"):
        Adaptation.new(PTuningV2(source=SelfAttention()), base)
    with pytest.raises(OptionError, match="inner block"):
        Adaptation.new(IDSPAM(targets="block[1]"), base)
    made = Adaptation.new(METHODS["iapt"], base)
    with pytest.raises(OptionError, match="depends on the input"):
        settled(made, base)
    with pytest.raises(ModelError, match="from the input, which a bank cannot hold"):
        Bank(base, {"a": made})
    with pytest.raises(RunError, match="in a forward only"):
        Adaptation.new(METHODS["id_spam"], base).at()[0].t(None)


def test_counts():
    base = bed.base("llama")
    count = lambda key: Adaptation.new(METHODS[key], base).counts()["method"]
    assert count("id_spam") == 3 * 32 * 32 + 16 * 32 + 3 * 32 * 16
    assert count("id_spam without attention") == 16 * 32 + 3 * 32 * 16
    assert count("iapt") == 2 * 6 * 32 + 3 * 6 + 12 * 3
    assert count("iapt by two") == 2 * (2 * 6 * 32 + 3 * 6) + 12 * 3
