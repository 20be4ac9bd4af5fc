"""SCT (S026): which channels, what the map does and leaves, and the variant that folds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import luthier as lt
from luthier.errors import LuthierError
from luthier.host import Adaptation, Adapted
from luthier.host.channels import class_norms
from luthier.methods.representation.sct import SCT, SCTOutputs
from luthier.starts.salient import Salient
from luthier.train.beginning import new_adaptation
from luthier.train.settings import Settings
from tests.host import bed


def caught(base, path: str, side: str) -> tuple[list[torch.Tensor], object]:
    """What enters or leaves a module, in a list."""
    module, seen = base.get_submodule(path), []
    if side == "in":
        hook = module.register_forward_pre_hook(
            lambda m, a, k: seen.append(a[0] if a else k["hidden_states"]), with_kwargs=True
        )
    else:
        hook = module.register_forward_hook(
            lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
    return seen, hook


@torch.no_grad()
def test_norms_are_class_by_class_without_the_class_token() -> None:
    base, model = bed.base("vit"), None
    model = Adapted(base)
    site = next(s for s in model.structure.sites if s.role == "attention.output")
    x, classes = bed.batch("vit", rows=6), torch.tensor([0, 2, 2, 0, 2, 5])
    entered, one = caught(base, "layers.0" if hasattr(base, "layers") else "encoder.layer.0", "in")
    left, two = caught(base, site.path, "out")
    batches = [
        (classes[:4], {k: v[:4] for k, v in x.items()}),
        (classes[4:], {k: v[4:] for k, v in x.items()}),
    ]
    for stream in (False, True):
        found = class_norms(model, [site], batches, stream=stream)[site.name]
        h = torch.cat([a + b if stream else b for a, b in zip(entered[-2:], left[-2:], strict=True)]).double()
        each = [h[classes == c][:, 1:].flatten(0, 1).norm(dim=0) for c in (0, 2, 5)]
        assert torch.allclose(found, torch.stack(each).mean(0))
    one.remove(), two.remove()


@torch.no_grad()
def test_padding_does_not_count() -> None:
    base, x = bed.base("llama"), bed.batch("llama")
    model = Adapted(base)
    site = next(s for s in model.structure.sites if s.role == "mlp.down")
    positions = (x["attention_mask"].cumsum(1) - 1).clamp(min=0)
    whole = class_norms(model, [site], [(torch.zeros(4, dtype=torch.long), {**x, "position_ids": positions})])
    rows = []
    for i in range(4):
        seen = x["attention_mask"][i].bool()
        rows.append((torch.zeros(1, dtype=torch.long), {"input_ids": x["input_ids"][i : i + 1, seen]}))
    assert torch.allclose(whole[site.name], class_norms(model, [site], rows)[site.name], rtol=1e-4)


@pytest.mark.parametrize("name", ["vit", "bert", "llama", "t5"])
@torch.no_grad()
def test_the_stream_behind_attention_is_mapped_and_other_channels_are_bitwise_the_same(name: str) -> None:
    base = bed.base(name)
    model, x = Adapted(base), bed.batch(name)
    made = bed.shaken(Adaptation.new(SCT(reduction=4, targets="attention.output[1]"), base))
    for a in made.at():
        a.layout["channels"] = [1, 2, 5, 8, 13, 21, 30, 31]
    at = made.at()[0]
    block = model.structure.partner(at.site, "block")
    entered, one = caught(base, block.path, "in")
    left, two = caught(base, at.site.path, "out")
    want = bed.result(model, x)
    with model.attached(made):
        assert not torch.allclose(bed.result(model, x), want)
    two.remove()  # the hook of the edit came behind it
    with model.attached(made):
        left_edited, two = caught(base, at.site.path, "out")
        bed.result(model, x)
    one.remove(), two.remove()
    before, after = entered[0] + left[0], entered[0] + left_edited[0]
    own = torch.tensor(at.layout["channels"])
    rest = torch.tensor([i for i in range(32) if i not in own.tolist()])
    assert torch.equal(before[..., rest], after[..., rest])
    t = at.t(None)
    change = 0.4 * (before[..., own] @ t.W.T + t.b)
    assert torch.allclose(after[..., own], before[..., own] + change, atol=1e-5) and change.abs().max() > 0.1


@pytest.mark.parametrize("kind", [SCT, SCTOutputs])
def test_a_map_of_zero_is_the_base_and_the_count_is_exact(kind) -> None:
    base, x = bed.base("vit"), bed.batch("vit")
    model = Adapted(base)
    made = Adaptation.new(kind(start=Salient(std=0.0)), base)
    assert made.counts()["method"] == 3 * (4 * 4 + 4)
    want = bed.result(model, x)
    with model.attached(made), torch.no_grad():
        assert torch.equal(bed.result(model, x), want)
    with model.attached(Adaptation.new(kind(), base)), torch.no_grad():
        assert not torch.equal(bed.result(model, x), want)


@pytest.mark.parametrize("name", ["vit", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("targets", ["mlp.down", "attention.query | attention.value"])
@torch.no_grad()
def test_the_outputs_of_a_layer_fold_into_it(name: str, targets: str) -> None:
    base = bed.base(name).double()
    model, x = Adapted(base), bed.batch(name)
    x = {k: v.double() if v.is_floating_point() else v for k, v in x.items()}
    made = bed.shaken(Adaptation.new(SCTOutputs(reduction=4, targets=targets), base)).double()
    for a in made.at():
        a.layout["channels"] = [i for i in range(a.site.out_features) if i % 4 == 1]
    at, keys = made.at()[0], list(base.state_dict())
    t, own = at.t(None), torch.tensor(at.layout["channels"])
    picking = torch.eye(at.site.out_features, dtype=torch.float64)[own]
    weight = torch.randn(at.site.out_features, 5, dtype=torch.float64)
    square = 0.4 * picking.T @ t.W @ picking
    assert torch.allclose(at.part.delta(weight, t), square @ weight)
    with model.attached(made):
        got = bed.result(model, x)
        model.merge("attached")
        bed.close(bed.result(model, x), got, 1e-9)
    assert list(base.state_dict()) == keys
    with (
        model.attached(Adaptation.new(SCT(), base).double()),
        pytest.raises(LuthierError, match="not a change of weights"),
    ):
        model.merge("attached")


def test_a_fit_takes_the_channels_of_the_tasks_rows() -> None:
    model = lt.load("builtin:vit", device="cpu")
    data = lt.data("builtin:digits")
    picks = {}
    for which in ("largest", "smallest", "random"):
        part = SCT(start=Salient(which=which, rows=40), targets="attention.output[0]")
        made = new_adaptation(part, model, data, Settings(), None, {})
        (picks[which],) = (a.layout["channels"] for a in made.at())
    assert all(len(p) == 16 and p == sorted(set(p)) for p in picks.values())
    assert not set(picks["largest"]) & set(picks["smallest"])
    adapted = Adapted(model.base)
    site = next(s for s in adapted.structure.sites if s.role == "attention.output")
    by_class = [np.flatnonzero(np.asarray(data.train.targets) == c)[:4] for c in range(10)]
    rows = [
        (
            torch.tensor([c]),
            model.preprocess.collate(model.preprocess.encode(data.train.select(i.tolist()).inputs)),
        )
        for c, i in enumerate(by_class)
    ]
    norms = class_norms(adapted, [site], [(c.expand(4), b) for c, b in rows], stream=True)[site.name]
    # other rows of the same classes: the same channels but for a few
    assert len(set(norms.topk(16).indices.tolist()) & set(picks["largest"])) >= 12
    card = made.card()
    card["layouts"]["0"][made.at()[0].site.name]["channels"][0] = -1
    with pytest.raises(LuthierError):
        Adaptation.from_card(card, model.base)
