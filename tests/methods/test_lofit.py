"""LoFiT (S061): the formula, which heads stay, the plan, and folding into a bias that there was not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from luthier.errors import LuthierError
from luthier.host import Adaptation, Adapted
from luthier.host.merge import merged_copy
from luthier.methods.representation.lofit import LoFiT
from tests.conformance.cells import Cell
from tests.host import bed


def tuned(base, heads: dict[str, list[int]]) -> Adaptation:
    """Offsets away from zero at these heads."""
    part = LoFiT()
    made = Adaptation.new(part, base)
    part.offsets_at(SimpleNamespace(main=made), {a.site.name: heads.get(a.site.name, []) for a in made.at()})
    return bed.shaken(made)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit"])
@torch.no_grad()
def test_heads_are_scaled_and_moved_and_all_of_it_folds(name: str) -> None:
    base = bed.base(name).double()
    model, x = Adapted(base), bed.batch(name)
    x = {k: v.double() if v.is_floating_point() else v for k, v in x.items()}
    scaled = bed.shaken(Adaptation.new(LoFiT(), base)).double()
    sites = [a.site for a in scaled.at()]
    assert all(s.heads == 4 and s.head_dim == 8 for s in sites)
    moved = tuned(base, {sites[0].name: [1, 3], sites[-1].name: [0]}).double()
    assert moved.counts()["method"] == 3 * 8
    names, keys = [n for n, _ in base.named_modules()], list(base.state_dict())
    for made, site in ((scaled, sites[0]), (moved, sites[0]), (moved, sites[-1])):
        values = next(a.values for a in made.at() if a.site == site)
        taken: list[tuple[torch.Tensor, torch.Tensor]] = []
        layer = base.get_submodule(site.path)
        handle = layer.register_forward_hook(lambda m, a, out, taken=taken: taken.append((a[0], out)))
        with model.attached(made):
            got = bed.result(model, x)
            z, out = taken[0]
            heads = z.unflatten(-1, (4, 8)).clone()
            if "A" in values:
                heads = heads * (1 + values["A"])
            else:
                heads[..., [1, 3] if site is sites[0] else [0], :] += values["v"]
            assert torch.allclose(layer.__class__.forward(layer, heads.flatten(-2)), out)
            model.merge("attached")
            bed.close(bed.result(model, x), got, 1e-9)
            bias = dict(layer.named_parameters()).get("bias")
            assert bias is not None or made is scaled  # scales need none, offsets are one
            with model.using():
                assert torch.equal(bed.result(model, x), bed.result(Adapted(bed.base(name).double()), x))
        handle.remove()
        assert list(base.state_dict()) == keys and [n for n, _ in base.named_modules()] == names


def test_a_merged_copy_has_the_bias_and_the_base_has_none() -> None:
    base, x = bed.base("llama"), bed.batch("llama")
    made = tuned(base, {"model.layers.1.self_attn.o_proj": [2]})
    copy = merged_copy(base, made)
    model = Adapted(base)
    with model.attached(made), torch.no_grad():
        bed.close(copy(**x).logits, model(x).logits, 1e-5)
    own = copy.model.layers[1].self_attn.o_proj
    v = next(a for a in made.at() if a.layout["kept"]).values["v"][0]
    assert torch.allclose(own.bias, own.weight[:, 16:24] @ v, atol=1e-6)
    assert (
        copy.model.layers[0].self_attn.o_proj.bias is None
        and own.weight.requires_grad == own.bias.requires_grad
    )
    assert base.model.layers[1].self_attn.o_proj.bias is None


def test_the_heads_with_the_largest_scales_stay() -> None:
    base = bed.base("llama")
    part = LoFiT(keep=0.25)
    made = Adaptation.new(part, base)
    for a, biggest in zip(made.at(), ([0.0, 5.0, 0.1, -4.0], [0.0] * 4, [0.2, 0.1, 0.3, -6.0]), strict=True):
        a.values["A"].data.copy_(torch.tensor(biggest)[:, None].expand(4, 8))
    part.choose(SimpleNamespace(main=made))
    assert [a.layout["kept"] for a in made.at()] == [[1, 3], [], [3]]
    assert made.counts()["method"] == 3 * 8 and not any(p.any() for p in made.trainable().values())


def test_the_plan_finds_heads_and_tunes_their_offsets() -> None:
    cell = Cell("lofit", "llama", own=LoFiT(keep=0.25, penalty=0.0))
    run = cell.run()
    first = run.phases[0]
    assert [p.name for p in run.phases] == ["localise", "tune"]
    run.enter()
    assert {n.rpartition(".")[2] for n in run.named} == {"A"}
    assert run.optimiser.param_groups[0]["lr"] == pytest.approx(0.3 * LoFiT.rate)
    batch = run.batch()
    plain = first.objective(run, batch)
    for a in run.main.at():
        a.values["A"].data.fill_(-1e-3)
    with run.adapted.using("main"):
        alone = run.objective.loss(run, batch)
    penalised = LoFiT(keep=0.25, penalty=10.0).penalised(run, batch)
    assert float((penalised - alone).detach()) == pytest.approx(
        10 * 12 * 8 * 1e-3, rel=1e-3
    ) and torch.isfinite(plain)
    run = cell.run()
    run.go()
    assert run.main.counts()["method"] == 3 * 8
    assert all(p.abs().max() > 0 for p in run.main.trainable().values())


def test_a_card_with_heads_that_are_not_there_is_refused() -> None:
    base = bed.base("llama")
    card = tuned(base, {"model.layers.0.self_attn.o_proj": [0, 2]}).card()
    Adaptation.from_card(card, base)
    for wrong in ([-1, 2], [2, 0], [0, 4], [1, 1], ["0"]):
        card["layouts"]["0"]["model.layers.0.self_attn.o_proj"]["kept"] = wrong
        with pytest.raises(LuthierError):
            Adaptation.from_card(card, base)
