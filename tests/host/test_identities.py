"""Exact identities that the papers state, and the algebra of adaptations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from luthier.errors import LuthierError, OptionError
from luthier.host import Adaptation, Adapted, Start, lerp, mean, method, stack
from luthier.host.bank import Bank
from luthier.host.part import register
from luthier.methods.adapters.bottleneck import Adapter
from luthier.methods.heads import LinearHead
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prefixes.p_tuning_v2 import PTuningV2
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.methods.scaling.ia3 import IA3
from luthier.starts.vocabulary import Vocabulary
from tests.host import bed


@register("test_random_start")
class Somewhere(Start):
    """Both factors random, and the start's own effect subtracted."""

    anchored = True

    def fill(self, site, specs, weight, statistics, rng):
        return {k: torch.randn(s.shape, generator=rng) for k, s in specs.items()}


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@torch.no_grad()
def test_an_anchored_start_is_the_base_bitwise_and_merges(name: str) -> None:
    model, x = Adapted(bed.base(name)), bed.batch(name)
    want = bed.result(model, x)
    model.attach("main", Adaptation.new(LoRA(rank=2, start=Somewhere()), model.base))
    assert torch.equal(bed.result(model, x), want)
    bed.shaken(model.adaptations["main"])
    model.double()
    got = bed.result(model, x)
    assert not torch.allclose(got, want.double())
    model.merge("main")
    bed.close(bed.result(model, x), got, 1e-10)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
@torch.no_grad()
def test_a_prompt_of_a_texts_embeddings_is_the_text(name: str) -> None:
    """S282: P set to the embeddings of a text reproduces the text-prompted logits."""
    base, text = bed.base(name), (7, 11, 3)
    model, x = Adapted(base), bed.batch(name)
    x["attention_mask"] = torch.ones_like(x["attention_mask"])
    front = torch.tensor(text).expand(4, -1)
    longer = dict(
        x, input_ids=torch.cat([front, x["input_ids"]], 1), attention_mask=torch.ones(4, 12, dtype=torch.long)
    )
    want = base(**longer).logits
    want = want if name == "t5" else want[:, 3:]
    model.attach("main", Adaptation.new(PromptTuning(length=3, start=Vocabulary(ids=text)), base))
    bed.close(model(x).logits, want, 1e-5)


@torch.no_grad()
def test_prefix_attention_is_the_gated_sum() -> None:
    """S202: attention with a prefix is (1 - lambda) Attn + lambda softmax(q P_k^T) P_v, lambda the prefix's share."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 6, 8, generator=rng, dtype=torch.float64) for _ in range(3))
    pk, pv = (torch.randn(2, 4, 3, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    together = F.scaled_dot_product_attention(q, torch.cat([pk, k], -2), torch.cat([pv, v], -2))
    own, front = (q @ k.mT / 8**0.5).logsumexp(-1), (q @ pk.mT / 8**0.5).logsumexp(-1)
    share = torch.sigmoid(front - own)[..., None]
    gated = (1 - share) * F.scaled_dot_product_attention(q, k, v) + share * F.scaled_dot_product_attention(
        q, pk, pv
    )
    assert torch.allclose(together, gated, atol=1e-12)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit"])
@torch.no_grad()
def test_a_prefix_of_length_zero_is_the_base(name: str) -> None:
    model, x = Adapted(bed.base(name)), bed.batch(name)
    want = bed.result(model, x)
    model.attach("main", Adaptation.new(PTuningV2(length=0), model.base))
    assert torch.equal(bed.result(model, x), want)


@pytest.mark.parametrize("name", ["bert", "llama"])
@torch.no_grad()
def test_a_prefix_equals_past_keys_and_values_of_a_real_text(name: str) -> None:
    """S099: keys and values of a text's own, given as a prefix, are what attention over that text sees."""
    if name == "bert":
        return _bert_prefix()
    base = bed.base(name)
    ids = torch.randint(2, 40, (1, 12), generator=torch.Generator().manual_seed(1))
    first = base(input_ids=ids[:, :4], use_cache=True)
    want = base(input_ids=ids[:, 4:], past_key_values=first.past_key_values, use_cache=True).logits
    again = base(input_ids=ids[:, :4], use_cache=True).past_key_values
    model = Adapted(base)
    prefix = Adaptation.new(PTuningV2(length=4), base)
    for at, layer in zip(prefix.at(), again.layers, strict=True):
        at.values["K"].copy_(layer.keys[0])
        at.values["V"].copy_(layer.values[0])
    model.attach("main", prefix)
    got = model({"input_ids": ids[:, 4:], "position_ids": torch.arange(4, 12)[None]}).logits
    bed.close(got, want, 1e-5)


def _bert_prefix() -> None:
    """Concatenation inside one attention, computed by hand."""
    base = bed.base("bert")
    model, x = Adapted(base), bed.batch("bert")
    prefix = bed.shaken(Adaptation.new(PTuningV2(length=3, targets="attention[0]"), base))
    model.attach("main", prefix)
    seen = {}
    base.encoder.layer[0].attention.self.register_forward_hook(
        lambda m, a, kw, out: seen.update(h=a[0], out=out[0]), with_kwargs=True
    )
    model(x)
    attention, h = base.encoder.layer[0].attention.self, seen["h"]
    heads = lambda y: y.view(4, 9, 4, 8).transpose(1, 2)
    q, k, v = heads(attention.query(h)), heads(attention.key(h)), heads(attention.value(h))
    t = prefix.at()[0].values
    k, v = torch.cat([t["K"].expand(4, -1, -1, -1), k], 2), torch.cat([t["V"].expand(4, -1, -1, -1), v], 2)
    mask = torch.cat([torch.ones(4, 3, dtype=torch.bool), x["attention_mask"].bool()], 1)[:, None, None]
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(4, 9, 32)
    bed.close(seen["out"], want, 1e-5)


MIXED = {
    "lora": LoRA(rank=2),
    "adapter": Adapter(width=4),
    "prefix": PTuningV2(length=2),
    "prompt": PromptTuning(length=3),
}


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@torch.no_grad()
def test_a_batch_that_mixes_methods_by_row_equals_row_by_row(name: str) -> None:
    model, x = Adapted(bed.base(name)), bed.batch(name)
    for key, part in MIXED.items():
        model.attach(key, bed.shaken(Adaptation.new(part, model.base)))
    who = ["prefix", "prompt", None, "lora"]
    together = bed.result(model, {**x, "adaptation": who})
    for i, key in enumerate(who):
        row = {k: v[i : i + 1] for k, v in x.items()}
        with model.using(*([key] if key else [])):
            bed.close(together[i : i + 1], bed.result(model, row), 1e-4)
    if name != "bert":
        inputs = {k: x[k] for k in ("input_ids", "attention_mask")}
        options = {"max_new_tokens": 3, "do_sample": False, "num_beams": 2}
        with model.given(adaptation=who):
            mixed = model.base.generate(**inputs, **options)
        for i, key in enumerate(who):
            with model.using(*([key] if key else [])):
                assert torch.equal(
                    mixed[i],
                    model.base.generate(**{k: v[i : i + 1] for k, v in inputs.items()}, **options)[0],
                )


@pytest.mark.parametrize("name", ["t5", "vit"])
@torch.no_grad()
def test_rows_with_different_prompts_are_refused_where_positions_cannot_skip(name: str) -> None:
    model = Adapted(bed.base(name))
    for key in "ab":
        model.attach(key, Adaptation.new(PromptTuning(length=3), model.base))
    with pytest.raises(LuthierError, match="separate batches"):
        bed.result(model, {**bed.batch(name), "adaptation": ["a", "b", "a", "b"]})


BANKED = [
    LoRA(rank=2),
    Adapter(width=4),
    PTuningV2(length=2),
    PTuningV2(length=2, reparameterise=True),
    PromptTuning(length=3),
    IA3(),
]


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "vit"])
@pytest.mark.parametrize(
    "part", BANKED, ids=lambda p: p.name + ("-mlp" if getattr(p, "reparameterise", False) else "")
)
@torch.no_grad()
def test_a_bank_equals_row_by_row_after_add_and_swap(part, name: str) -> None:
    # in float64: this T5 makes 1e-4 of a rounding error, and one adaptation alone is computed in another order than a bank
    base, x = (
        bed.base(name).double(),
        {k: v.double() if v.is_floating_point() else v for k, v in bed.batch(name).items()},
    )
    made = {
        k: bed.shaken(Adaptation.new(part, base, head=LinearHead(width=32, classes=c), seed=i), 0.3, i)
        for i, (k, c) in enumerate({"a": 3, "b": 2, "c": 3, "d": 2}.items())
    }
    bank = Bank(base, {"a": made["a"], "b": made["b"]}, capacity=2)
    bank.add("c", made["c"])
    bank.swap("b", made["d"])
    model, names = Adapted(base), ["a", "c", "b", "a"]
    with model.attached(bank.adaptation):
        got = bank(model, x, names).logits
    for i, (name_of, key) in enumerate(zip(names, ["a", "c", "d", "a"], strict=True)):
        with model.attached(made[key]):
            want = model({k: v[i : i + 1] for k, v in x.items()}).logits
        bed.close(got[i : i + 1, : want.shape[1]], want, 1e-9)
        assert name_of != "b" or got[i, 2] == float("-inf")
    with pytest.raises(OptionError, match="other options"):
        bank.add(
            "e", Adaptation.new(LoRA(rank=3), base) if name != "vit" else Adaptation.new(LoRA(rank=5), base)
        )


def one(seed: int, base, part=None) -> Adaptation:
    return bed.shaken(Adaptation.new(part or LoRA(rank=2), base), 0.2, seed)


@settings(max_examples=15, deadline=None)
@given(a=st.floats(-2, 2), b=st.floats(-2, 2))
@torch.no_grad()
def test_effects_add_with_their_coefficients(a: float, b: float) -> None:
    """On one linear map the effect of a combination is the combination of effects."""
    base = torch.nn.Sequential(torch.nn.Linear(6, 5))
    model, x = Adapted(base), {"x": torch.randn(3, 6, generator=torch.Generator().manual_seed(0))}
    one_, two = (bed.shaken(Adaptation.new(LoRA(rank=2, targets="linear"), base), 1.0, i) for i in (0, 1))
    zero = model(x).hidden
    effect = []
    for value in (one_, two, a * one_ + b * two):
        with model.attached(value):
            effect.append(model(x).hidden - zero)
    assert torch.allclose(effect[2], a * effect[0] + b * effect[1], atol=1e-4)


@torch.no_grad()
def test_negation_undoes_and_methods_of_any_place_stack() -> None:
    base, x = bed.base("bert"), bed.batch("bert")
    model = Adapted(base)
    want = bed.result(model, x)
    lora, prompt, prefix = (
        one(0, base),
        one(1, base, PromptTuning(length=2)),
        one(2, base, PTuningV2(length=2)),
    )
    with model.attached(lora - lora):
        bed.close(bed.result(model, x), want, 1e-5)
    with model.attached(stack(prompt, lora, prefix)):
        together = bed.result(model, x)
    for k, a in (("prompt", prompt), ("lora", lora), ("prefix", prefix)):
        model.attach(k, a)
    assert torch.equal(bed.result(model, x), together)
    model.detach()
    with model.attached(0.5 * prompt), pytest.raises(LuthierError, match="no additive effect"):
        bed.result(model, x)


def test_means_need_an_equal_start() -> None:
    base = bed.base("bert")
    adapter = Adapter(width=4)
    a, b = one(0, base, adapter), one(1, base, adapter)
    middle = mean([a, b])
    for n, p in middle.trainable().items():
        assert torch.allclose(p, (a.trainable()[n] + b.trainable()[n]) / 2)
    assert torch.allclose(
        next(iter(lerp(a, b, 0.0).trainable().values())), next(iter(a.trainable().values()))
    )
    with pytest.raises(OptionError, match="Add effects"):
        mean([a, one(0, base)])


def test_the_base_gets_its_flags_back() -> None:
    base = bed.base("bert").train().requires_grad_(True)
    model = Adapted(base)
    with model.attached(one(0, base)):
        assert not base.training and not any(p.requires_grad for p in base.parameters())
    assert base.training and all(p.requires_grad for p in base.parameters())


def test_bf16_bases_keep_small_tensors_in_fp32_and_outputs_finite() -> None:
    base = bed.base("llama").bfloat16()
    model = Adapted(base)
    model.attach("main", one(0, base))
    out = bed.result(model, bed.batch("llama"))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()
    assert all(
        p.dtype == torch.float32 and torch.isfinite(p.grad).all()
        for p in model.adaptations["main"].trainable().values()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_hundred_merges_change_no_weight(dtype: torch.dtype) -> None:
    base = bed.base("llama").to(dtype)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    model = Adapted(base)
    model.attach("main", one(0, base))
    for _ in range(100):
        model.merge("main")
        model.unmerge("main")
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())


def test_method_names_are_unique() -> None:
    with pytest.raises(OptionError, match="Two choices"):

        @method("lora")
        class Another(LoRA):
            pass
