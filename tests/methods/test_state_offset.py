"""The state of a selective scan: offsets and initial states against a scan written out, step by step, in float64."""

from __future__ import annotations

import pytest
import torch
import transformers as tr
from torch import nn
from torch.nn.functional import conv1d, silu, softplus

from luthier.errors import LuthierError, ModelError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.applicable import Reason, why_not
from luthier.host.bank import Bank
from luthier.methods.states.initial_state import InitialState
from luthier.methods.states.low_rank_state_offset import LowRankStateOffset
from luthier.methods.states.state_offset import StateOffset
from luthier.models.scan import scanned
from luthier.sources.low_rank import LowRank
from luthier.sources.settle import settled
from tests.conformance.cells import Cell
from tests.conformance.properties import PROPERTIES
from tests.host import bed

PARTS = {
    "state": StateOffset(),
    "output": StateOffset(version="output"),
    "low_rank": LowRankStateOffset(source=LowRank(rank=2, initial="zero")),
    "initial": InitialState(),
}
MIXERS = ("transformers", "ours")


def mamba(mixers: str = "transformers", dtype: torch.dtype = torch.float64) -> nn.Module:
    base = bed.base("mamba").to(dtype)
    if mixers == "ours":
        assert scanned(base) == 3
    return base


def attached(part, mixers="transformers", dtype=torch.float64, shake=True) -> Adapted:
    adapted = Adapted(mamba(mixers, dtype))
    made = Adaptation.new(part, adapted.base)
    adapted.attach("main", (bed.shaken(made) if shake else made).to(dtype))
    return adapted


def written_out(mixer, x, mask, h0=None, offset=None, added=None):
    """The mixer's own mathematics: what enters out_proj, and what it is made of. x: (rows, tokens, width)."""
    keep = mask[..., None].to(x)
    u, z = mixer.in_proj(x * keep).chunk(2, -1)
    kernel = mixer.conv1d.weight
    padded = nn.functional.pad(u.mT, (kernel.shape[-1] - 1, 0))
    u = silu(conv1d(padded, kernel, mixer.conv1d.bias, groups=len(kernel))).mT * keep
    step, B, C = mixer.x_proj(u).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], -1)
    steps, A = softplus(mixer.dt_proj(step)), -torch.exp(mixer.A_log.float()).to(x)
    h, out = torch.zeros(len(x), *A.shape, dtype=x.dtype), []
    for t in range(x.shape[1]):
        if h0 is not None:  # behind the padding of each row
            first = mask[:, t].bool() & (mask[:, :t].sum(1) == 0)
            h = torch.where(first[:, None, None], h0, h)
        h = torch.exp(steps[:, t, :, None] * A) * h + (steps[:, t] * u[:, t])[..., None] * B[:, t, None]
        read = h if offset is None else h + offset
        out.append((read * C[:, t, None]).sum(-1) + (0 if added is None else added) + mixer.D * u[:, t])
    return torch.stack(out, 1) * silu(z), {"C": C, "steps": steps, "A": A, "z": z}


def seen(adapted: Adapted, batch, layer=1):
    """(what the mixer of a layer received, what entered its out_proj)."""
    mixer, caught = adapted.base.backbone.layers[layer].mixer, {}
    # hooks that are registered last see what every other hook has made
    hooks = (
        mixer.register_forward_pre_hook(lambda m, a, k: caught.update(x=a[0]), with_kwargs=True),
        mixer.out_proj.register_forward_pre_hook(lambda m, a: caught.update(y=a[0])),
    )
    adapted(batch)
    for hook in hooks:
        hook.remove()
    return caught["x"], caught["y"]


@pytest.mark.parametrize("mixers", MIXERS)
@pytest.mark.parametrize("name", PARTS)
@torch.no_grad()
def test_what_enters_the_closing_projection_is_the_formula(name, mixers):
    adapted, batch = attached(PARTS[name], mixers), bed.batch("mamba")
    x, got = seen(adapted, batch)
    at = next(a for a in adapted.adaptations["main"].at() if a.site.layer == 1)
    t, mixer, mask = at.t(None), adapted.base.backbone.layers[1].mixer, batch["attention_mask"]
    with adapted.using():
        own = {"initial": {"h0": t.get("h0")}, "output": {"added": t.get("y")}}.get(
            name, {"offset": t.get("h")}
        )
        want, _ = written_out(mixer, x, mask, **own)
        without, _ = written_out(mixer, x, mask)
        hook = mixer.register_forward_pre_hook(lambda m, a, k: ((x, *a[1:]), k), with_kwargs=True)
        base = seen(adapted, batch)[1]
        hook.remove()
    assert not torch.allclose(without, want, atol=1e-3)
    keep = mask[..., None]
    bed.close((got - base) * keep, (want - without) * keep, 1e-10)
    bed.close(got * keep, want * keep, 1e-10 if mixers == "ours" else 1e-6)  # theirs is float32 in places


@pytest.mark.parametrize("mixers", MIXERS)
def test_derivatives_before_the_gate_are_the_papers(mixers):
    """C_t for h', 1 for y', C_t exp(A sum of Delta) for h_0, each inside its own channel and zero elsewhere."""
    batch = bed.batch("mamba", rows=1, tokens=6)
    for name in ("state", "output", "initial"):
        adapted = attached(PARTS[name], mixers, shake=False)
        at = next(a for a in adapted.adaptations["main"].at() if a.site.layer == 1)
        (parameter,) = at.values.values()
        parameter.requires_grad_(True)
        x, y = seen(adapted, batch)
        with torch.no_grad(), adapted.using():
            _, of = written_out(adapted.base.backbone.layers[1].mixer, x, batch["attention_mask"])
        total = of["steps"].cumsum(1)
        for t, d in ((0, 3), (5, 17)):
            (found,) = torch.autograd.grad(y[0, t, d], parameter, retain_graph=True)
            found = found / silu(of["z"][0, t, d])
            want = torch.zeros_like(found)
            decay = torch.exp(of["A"][d] * total[0, t, d])
            want[d] = {"state": of["C"][0, t], "output": 1.0, "initial": of["C"][0, t] * decay}[name]
            bed.close(found, want, 1e-10)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("mixers", MIXERS)
@torch.no_grad()
def test_decoding_with_a_cache_equals_the_whole(name, mixers):
    """Token by token behind a prefill, rows padded on the left; a prompt of one token too."""
    adapted, batch = attached(PARTS[name], mixers, torch.float32), bed.batch("mamba", tokens=12)
    whole = adapted(batch).logits
    for prefilled in (7, 12, 1):
        rows = slice(0, 1) if prefilled == 1 else slice(0, 4)
        ids, mask = batch["input_ids"][rows], batch["attention_mask"][rows]
        out = adapted.base(ids[:, :prefilled], attention_mask=mask[:, :prefilled], use_cache=True)
        found = [out.logits[:, -1]]
        for t in range(prefilled, 12):
            out = adapted.base(ids[:, t : t + 1], cache_params=out.cache_params, use_cache=True)
            found.append(out.logits[:, -1])
        bed.close(torch.stack(found, 1), whole[rows, prefilled - 1 :], 1e-5)


@torch.no_grad()
def test_where_every_token_reads_the_state_alike_the_versions_agree():
    """y' = h' c"""
    batch, found = bed.batch("mamba"), []
    c = torch.linspace(-1, 1, 4, dtype=torch.float64)
    values = torch.randn(3, 64, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name in ("state", "output"):
        base = mamba()
        for layer in base.backbone.layers:
            layer.mixer.x_proj.register_forward_hook(
                lambda m, a, out: torch.cat([out[..., :-4], c.expand(*out.shape[:-1], 4)], -1)
            )
        adapted = Adapted(base)
        adapted.attach("main", Adaptation.new(PARTS[name], base).to(torch.float64))
        alone = adapted(batch).logits
        for at, h in zip(adapted.adaptations["main"].at(), values, strict=True):
            next(iter(at.values.values())).copy_(h if name == "state" else h @ c)
        found.append(adapted(batch).logits)
        assert not torch.allclose(found[-1], alone, atol=1e-3)
    bed.close(found[0], found[1], 1e-10)


def test_the_output_version_trains_one_number_a_channel():
    made = Adaptation.new(PARTS["output"], mamba())
    assert made.counts()["method"] == 3 * 64
    with pytest.raises(OptionError, match="state_offset"):
        Adaptation.new(LowRankStateOffset(version="output"), mamba())


@pytest.mark.parametrize(
    "named",
    [p for p in PROPERTIES.values() if p.name != "the_count_is_the_closed_form"],
    ids=lambda p: p.name,
)
def test_the_output_version_keeps_to_every_property(named):
    cell = Cell("state_offset+version=output", "mamba", own=PARTS["output"])
    if cell.why_not(named.needs) is None:
        named.check(cell)
    else:
        assert cell.why_not(named.needs) is Reason.NOT_A_WEIGHT


def test_factors_start_at_nothing_and_train_and_settle():
    base = mamba(dtype=torch.float32)
    made = Adaptation.new(PARTS["low_rank"], base)
    for at in made.at():
        assert not at.values["h_A"].any() and at.values["h_B"].abs().min() > 0
        assert at.values["h_B"].abs().max() <= 0.5  # 1 / sqrt(4)
    adapted, batch = Adapted(base), bed.batch("mamba")
    with adapted.attached(made):
        adapted(batch).logits.square().mean().backward()
    assert all(p.grad.abs().max() > 0 for n, p in made.trainable().items() if n.endswith("h_A"))
    bed.shaken(made)
    plain, found = settled(made, base), []
    for each in (made, plain):
        with torch.no_grad(), adapted.attached(each):
            found.append(adapted(batch).logits)
    bed.close(found[0], found[1], 1e-6)
    with pytest.raises(OptionError, match="never train"):
        Adaptation.new(StateOffset(source=LowRank(rank=2)), base)


@pytest.mark.parametrize("name", PARTS)
@torch.no_grad()
def test_a_bank_gives_each_row_its_own(name):
    base, batch = mamba(dtype=torch.float32), bed.batch("mamba")
    made = {str(i): bed.shaken(Adaptation.new(PARTS[name], base), seed=i) for i in range(3)}
    want = []
    for i, key in enumerate("0120"):
        adapted = Adapted(base)
        with adapted.attached(made[key]):
            want.append(adapted(batch).logits[i])
    bank, adapted = Bank(base, made), Adapted(base)
    with adapted.attached(bank.adaptation):
        got = bank(adapted, batch, list("0120")).logits
    keep = batch["attention_mask"][..., None]
    bed.close(got * keep, torch.stack(want) * keep, 1e-5)


def test_a_fused_kernel_that_passes_the_modules_by_is_refused(monkeypatch):
    from transformers.models.mamba import modeling_mamba

    adapted = attached(PARTS["state"], dtype=torch.float32)
    monkeypatch.setattr(modeling_mamba, "mamba_inner_fn", lambda xz, *a, **k: xz.mT[..., :32] * 0)
    adapted(bed.batch("mamba"))  # in evaluation mode the mixer calls its modules
    for layer in adapted.base.backbone.layers:
        layer.mixer.train()
    with pytest.raises(ModelError, match="fused kernel") as raised:
        adapted(bed.batch("mamba"))
    assert raised.value.reason is Reason.BYPASSED
    with adapted.using():
        adapted(bed.batch("mamba"))


def other_scans():
    small = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    yield tr.FalconMambaForCausalLM(tr.FalconMambaConfig(**small))
    yield tr.Mamba2ForCausalLM(tr.Mamba2Config(**small, num_heads=4, head_dim=16, n_groups=1))


@pytest.mark.parametrize("name", PARTS)
def test_other_scans_are_refused_and_so_are_models_without_one(name):
    for base in other_scans():
        hooks = [len(m._forward_hooks) for m in base.modules()]
        with pytest.raises(LuthierError, match="selective scan") as raised:
            Adapted(base).attach("main", Adaptation.new(PARTS[name], base))
        assert raised.value.reason is Reason.NO_SCAN and why_not(PARTS[name], base) is Reason.NO_SCAN
        assert [len(m._forward_hooks) for m in base.modules()] == hooks
    assert why_not(PARTS[name], bed.base("llama")) is Reason.NO_SITE
