"""AdapterFusion: what it adds, one adapter, what is left alone, what can be a member, and the commands."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier.cli.main import main
from luthier.errors import OptionError, SiteError
from luthier.host import Adaptation, Adapted
from luthier.instruments.fusion import weights
from luthier.methods.adapters.adapter_fusion import NOTE, AdapterFusion
from luthier.methods.adapters.bottleneck import Adapter, ParallelAdapter
from luthier.methods.low_rank.lora import LoRA
from tests.few import few
from tests.host import bed

SETTINGS = {"steps": 3, "batch_size": 8, "progress": False, "seed": 2}


def adapters(base, names="abc"):
    return {n: bed.shaken(Adaptation.new(Adapter(width=4), base), 0.3, i) for i, n in enumerate(names)}


@pytest.fixture(scope="module")
def departments():
    return replace(lt.data("builtin:departments").limit(train=24, validation=4), test=None)


@pytest.fixture(scope="module")
def minilm():
    return lt.load("builtin:minilm", device="cpu")


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_one_adapter_and_v_the_identity_are_that_adapter(name):
    model, x = Adapted(bed.base(name)), bed.batch(name)
    held = adapters(model.base)
    fusion = Adaptation.new(AdapterFusion(), model.base, members={"a": held["a"]})
    with model.attached(held["a"]):
        want = bed.result(model, x)
    with model.attached(fusion):
        assert torch.allclose(bed.result(model, x), want, atol=1e-4)  # 1e-6 off the diagonal
        for at in fusion.at():
            at.values["V"].copy_(torch.eye(len(at.values["V"])))
        assert torch.allclose(bed.result(model, x), want, atol=1e-5)
    with model.attached(held["b"]):
        assert not torch.allclose(bed.result(model, x), want, atol=1e-2)


@torch.no_grad()
def test_a_site_adds_the_attention_that_the_paper_writes():
    model = Adapted(bed.base("bert"))
    fusion = bed.shaken(Adaptation.new(AdapterFusion(), model.base, members=adapters(model.base)), 0.1)
    model.attach("main", fusion)
    at, h = fusion.at()[0], torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    q, k, v = (at.values[n] for n in "QKV")
    ctx = model.open((), bed.batch("bert"))
    got = at.part.edit(h, at.t(ctx), ctx)
    for row, token in ((0, 0), (1, 2)):
        one = h[row, token]
        z = []
        for member in fusion.members.values():
            m = member.at()[0].values
            z.append(m["up"] @ torch.relu(m["down"] @ one + m["down_bias"]) + m["up_bias"])
        score = torch.stack([(q @ one + at.values["Q_bias"]) @ (k @ each) for each in z])
        w = score.exp() / score.exp().sum()
        want = one + sum(a * (v @ each) for a, each in zip(w, z, strict=True))
        assert torch.allclose(got[row, token], want, atol=1e-4)
        site, noted = ctx.notes[NOTE][0]
        assert site == at.site.name and torch.allclose(noted[row, token], w, atol=1e-5)


def test_training_moves_q_k_v_and_no_adapter_and_v_is_pulled_to_the_identity(minilm, departments):
    held = adapters(minilm.base, "ab")
    before = {n: a.hash() for n, a in held.items()}
    fits = {
        pull: lt.fit(minilm, departments, AdapterFusion(pull=pull), members=held, rate=1e-2, **SETTINGS)
        for pull in (0.0, 100.0)
    }
    assert all(
        m.requires_grad for a in held.values() for m in a.trainable().values()
    )  # the user's own are copies
    fresh = Adaptation.new(AdapterFusion(), minilm.base, members=held, seed=2)
    for fitted in fits.values():
        assert {n: m.hash() for n, m in fitted.adaptation.members.items()} == before
        for new, old in zip(fitted.adaptation.at(), fresh.at(), strict=True):
            assert all(not torch.equal(v, old.values[k]) for k, v in new.values.items())
    away = {
        p: sum(float((a.values["V"] - torch.eye(384)).square().sum()) for a in f.adaptation.at())
        for p, f in fits.items()
    }
    assert away[100.0] < 0.9 * away[0.0]
    shares = weights(fits[0.0], departments.train)
    assert len(shares) == 6 and all(
        abs(sum(s.values()) - 1) < 1e-5 and set(s) == {"a", "b"} for s in shares.values()
    )


def test_what_cannot_be_a_member_is_refused(minilm, departments):
    base = bed.base("bert")

    def fused(**members):
        return Adaptation.new(AdapterFusion(), base, members=members)

    with pytest.raises(OptionError, match="none was given"):
        fused()
    with pytest.raises(OptionError, match=r"'x' \(parallel_adapter\)"):
        fused(x=Adaptation.new(ParallelAdapter(width=4), base))
    with pytest.raises(OptionError, match=r"'x' \(lora\)"):
        fused(x=Adaptation.new(LoRA(rank=2, targets="mlp.down"), base))
    with pytest.raises(SiteError, match="no part at all of its 3 sites"):
        fused(x=Adaptation.new(Adapter(width=4, targets="mlp.down[-1:]"), base))
    with pytest.raises(OptionError, match="refers to trained adapters"):
        lt.fit(minilm, departments, AdapterFusion(), **SETTINGS)
    with pytest.raises(OptionError, match="lora refers to no other"):
        lt.fit(minilm, departments, LoRA(), members=adapters(minilm.base, "a"), **SETTINGS)
    with pytest.raises(OptionError, match="has no weights of members"):
        weights(lt.fit(minilm, departments, LoRA(), **SETTINGS), departments.train)


def test_the_commands_fuse_adapters_and_show_their_weights(tmp_path, capsys):
    rows = few("departments", tmp_path / "rows")
    common = ["--model", "builtin:bert", "--data", rows, "--steps", "2", "--quiet"]
    for name in "ab":
        assert (
            main(["fit", *common, "--method", "adapter", "--set", "width=4", "--out", str(tmp_path / name)])
            == 0
        )
    members = [x for n in "ab" for x in ("--member", f"{n}={tmp_path / n}")]
    assert main(["fit", *common, "--method", "adapter_fusion", *members, "--out", str(tmp_path / "c")]) == 0
    capsys.readouterr()
    shown = ["instruments", "fusion", str(tmp_path / "c"), "--data", rows, "--rows", "8"]
    assert main([*shown, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 8 and all(set(x) == {"a", "b"} for x in said["layers"].values())
    assert main(shown) == 0 and "0.5" in capsys.readouterr().out
