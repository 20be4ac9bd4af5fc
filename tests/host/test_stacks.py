"""Parts that walk the blocks themselves: a reversible network as a test of the place, and ladders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.host import Adaptation, Adapted, method, zero
from luthier.host.places import Stack
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.side.lst import LST
from tests.host import bed


class _Reversible(torch.autograd.Function):
    """h1' = lam h1 + F(h2), h2' = h2 + G(h1'): activations are recomputed backwards, in the forward's own context."""

    @staticmethod
    def forward(ctx, h, blocks, lam, again, *flat):
        h1, h2 = _walk(blocks, h, h, list(zip(flat[::2], flat[1::2])), lam)
        ctx.blocks, ctx.lam, ctx.again = blocks, lam, again
        ctx.save_for_backward(h1, h2, *flat)
        return h2

    @staticmethod
    def backward(ctx, grad):
        h1, h2, *flat = ctx.saved_tensors
        pairs, g1, g2, out = list(zip(flat[::2], flat[1::2])), torch.zeros_like(grad), grad, []
        with ctx.again():
            for block, pair in reversed(list(zip(ctx.blocks, pairs))):
                with torch.no_grad():
                    x2 = h1 - _g(h2, *pair)
                    x1 = (h2 - block(x2)) / ctx.lam
                with torch.enable_grad():
                    ins = [x.detach().requires_grad_() for x in (x1, x2, *pair)]
                    torch.autograd.backward(_walk([block], ins[0], ins[1], [ins[2:]], ctx.lam), (g1, g2))
                g1, g2, gd, gu = (x.grad for x in ins)
                out, h1, h2 = [gd, gu, *out], x1, x2
        return (g1 + g2, None, None, None, *out)


def _g(h: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return torch.relu(h @ down.mT) @ up.mT


def _walk(blocks, h1, h2, pairs, lam):
    for block, pair in zip(blocks, pairs):
        y1 = lam * h1 + block(h2)
        h1, h2 = h2 + _g(y1, *pair), y1
    return h1, h2


@method("test_reversible", targets="block")
class Reversible(Stack):
    lam: float = 0.5
    recompute: bool = True
    start: object = zero("up")

    def tensors(self, site, layout):
        return {"down": (4, site.out_features), "up": (site.out_features, 4)}

    def run(self, blocks, h, ts, network, ctx):
        flat = [x for t in ts for x in (t.down, t.up)]
        if self.recompute:
            return _Reversible.apply(h, blocks, self.lam, ctx.again, *flat)
        return _walk(blocks, h, h, list(zip(flat[::2], flat[1::2])), self.lam)[1]


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
def test_a_reversible_network_recomputes_the_same_gradients(name: str) -> None:
    grads = []
    for recompute in (True, False):
        model = Adapted(bed.base(name).double())
        x = {k: v.double() if v.is_floating_point() else v for k, v in bed.batch(name).items()}
        part = Reversible(recompute=recompute)
        model.attach("main", bed.shaken(Adaptation.new(part, model.base)).double())
        loss = bed.result(model, x).pow(2).mean()
        with model.using():
            bed.result(model, x)
        loss.backward()
        grads.append([p.grad for p in model.adaptations["main"].trainable().values()])
    for a, b in zip(*grads):
        if b is None:
            assert a is None or not a.any()
        else:
            bed.close(a / b.norm().clamp(min=1e-12), b / b.norm().clamp(min=1e-12), 1e-8)


def test_two_stacks_are_refused() -> None:
    model = Adapted(bed.base("bert"))
    model.attach("a", Adaptation.new(LST(reduction=2), model.base))
    with pytest.raises(ModelError, match="so does another"):
        model.attach("b", Adaptation.new(LST(reduction=2), model.base))
    assert list(model.adaptations) == ["a"]


def test_a_tensor_under_a_side_network_is_not_reached() -> None:
    model = Adapted(bed.base("bert"))
    model.attach("side", Adaptation.new(LST(reduction=2), model.base))
    model.attach("lora", Adaptation.new(LoRA(rank=2), model.base))
    bed.result(model, bed.batch("bert")).sum().backward()
    assert all(p.grad is None for p in model.adaptations["lora"].trainable().values())
    assert all(p.grad is not None for p in model.adaptations["side"].trainable().values())


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_a_ladder_with_an_open_gate_hands_on_the_projected_backbone(name: str) -> None:
    """S200: with the first gate forced to 1, the first side input is W_1 h_1 whatever s_0 is; no gradient enters the base."""
    model = bed.adapted(LST(reduction=2), name)
    net = model.adaptations["main"].placed()[0].network
    tower = model.structure.towers[0]
    ladder, seen = net[tower.name], {}
    with torch.no_grad():
        ladder.gate[0] = 1e6
    block = model.base.get_submodule(tower.blocks[0])
    with torch.no_grad(), model.using():
        handle = block.register_forward_hook(
            lambda m, a, out: seen.update(h=out[0] if isinstance(out, tuple) else out)
        )
        model(bed.batch(name))
        handle.remove()
    ladder.layers[0].register_forward_pre_hook(lambda m, a: seen.update(s=a[0]))
    loss = bed.result(model, bed.batch(name)).pow(2).mean()
    assert torch.equal(seen["s"], seen["h"] @ ladder.down[1].mT)
    loss.backward()
    assert all(p.grad is None for p in model.base.parameters())


def test_the_backbones_decoder_reads_the_backbones_encoder_and_the_ladders_read_each_other() -> None:
    """Sung et al. 2022: both halves have a ladder, and the backbone stays what it was, also where it is read."""
    model = bed.adapted(LST(reduction=2), "t5")
    batch = bed.batch("t5")
    seen: dict[str, list[Tensor]] = {"own": [], "side": []}
    # the feed-forward layer ends a block of T5
    last = model.base.decoder.block[-1].layer[-1]
    with torch.no_grad():
        handle = last.register_forward_hook(lambda m, a, out: seen["own"].append(out))
        out = model(batch)
        with model.using():
            base = model(batch)
        handle.remove()
    adapted_last, base_last = seen["own"]
    assert torch.equal(adapted_last, base_last)
    assert not torch.allclose(out.logits, base.logits)
    assert out.raw.encoder_last_hidden_state.shape == base.raw.encoder_last_hidden_state.shape
    bed.result(model, batch).pow(2).mean().backward()
    for name, p in model.adaptations["main"].trainable().items():
        if name.startswith("parts.0.network.encoder."):
            assert p.grad is not None and p.grad.abs().max() > 0, name


def test_states_of_an_encoder_that_ran_without_the_ladder_are_refused() -> None:
    model = bed.adapted(LST(reduction=2), "t5")
    batch = bed.batch("t5")
    with model.using(), torch.no_grad():
        alone = model.base.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    inputs = {k: v for k, v in batch.items() if k not in ("input_ids", "labels")}
    with pytest.raises(ModelError, match="Run both with it attached"):
        model.base(encoder_outputs=alone, **inputs)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit"])
def test_a_side_network_may_be_drawn_instead_of_cut(name: str) -> None:
    """Its matrices are others than the pruned ones, as wide, and the same for the same seed."""
    base = bed.base(name)
    pruned = Adaptation.new(LST(reduction=2), base).state()
    drawn, again = (Adaptation.new(LST(reduction=2, initial="random"), base).state() for _ in range(2))
    other = Adaptation.new(LST(reduction=2, initial="random"), base, seed=1).state()
    layers = [k for k, v in pruned.items() if ".layers." in k and v.dim() == 2 and "bias" not in k]
    assert len(layers) > 10
    for k in layers:
        assert drawn[k].shape == pruned[k].shape
        assert torch.equal(drawn[k], again[k])
        assert not torch.equal(drawn[k], other[k])
        assert abs(torch.corrcoef(torch.stack([drawn[k].flatten(), pruned[k].flatten()]))[0, 1]) < 0.3


def test_drawn_layers_of_t5_begin_as_its_attention_says_and_not_as_any_linear_map():
    """T5 draws a query with deviation 1 / sqrt(width head_dim) and any other projection with 1 / sqrt(fan-in); half as wide, that
    grows by sqrt(2)."""
    made = Adaptation.new(LST(reduction=2, initial="random"), bed.base("t5")).state()
    got = {k: v for k, v in made.items() if "decoder.layers." in k and "SelfAttention" in k}
    for name, want in (("q", (32 * 8) ** -0.5), ("k", 32**-0.5), ("v", 32**-0.5)):
        drawn = torch.cat([v.flatten() for k, v in got.items() if k.endswith(f"SelfAttention.{name}.weight")])
        assert abs(drawn.std() / (want * 2**0.5) - 1) < 0.15, name
