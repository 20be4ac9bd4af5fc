"""The knowledge adapter (S009): its formula, what it leaves alone, and writing with a cache."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.side.knowledge_adapter import KnowledgeAdapter, numbers
from tests.host import bed
from tests.train import train_testbed as texts


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit"])
@pytest.mark.parametrize("reads", ["-1", "0, -1"])
def test_step_0_is_the_base_bitwise_and_so_it_is_without_it(name, reads):
    model, batch = Adapted(bed.base(name)), bed.batch(name)
    with torch.no_grad():
        base = bed.result(model, batch)
        made = model.attach("main", Adaptation.new(KnowledgeAdapter(reads=reads), model.base))
        assert torch.equal(bed.result(model, batch), base)
        bed.shaken(made)
        assert not torch.allclose(bed.result(model, batch), base, atol=1e-2)
        with model.using():
            assert torch.equal(bed.result(model, batch), base)


def test_the_formula_with_two_blocks_read():
    """u = state + previous output; a = u + up(layers(down u)); out = W [h; a] + c, by hand from the base's own states."""
    base, batch = bed.base("llama"), bed.batch("llama")
    final: list[torch.Tensor] = []
    base.model.norm.register_forward_pre_hook(lambda m, a: final.append(a[0]))
    with torch.no_grad():
        states = base(**batch, output_hidden_states=True).hidden_states
        model = Adapted(base)
        made = model.attach("main", bed.shaken(Adaptation.new(KnowledgeAdapter(reads="1,0"), base)))
        (side,) = made.placed()[0].network.values()
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in side.layers:
            layer.register_forward_hook(
                lambda m, a, out: seen.append((a[0], out[0] if isinstance(out, tuple) else out))
            )
        model(batch)
    assert side.reads == [0, 1] and len(seen) == len(side.layers) == 4
    a = torch.zeros(())
    for k in (0, 1):
        u = states[k + 1] + a
        bed.close(seen[2 * k][0], u @ side.down[k].T + side.down_bias[k], 1e-5)
        bed.close(seen[2 * k + 1][0], seen[2 * k][1], 0)
        a = u + seen[2 * k + 1][1] @ side.up[k].T + side.up_bias[k]
    last = final[0]
    bed.close(final[1], torch.cat([last, a], -1) @ side.join.T + side.join_bias, 1e-5)


def test_a_base_is_bit_identical_after_memorising_and_its_decoder_reads_its_own_encoder():
    from luthier.train.fit import fit

    model = texts.model("encoder-decoder")
    before = {k: v.clone() for k, v in model.base.state_dict().items()}
    fitted = fit(model, texts.data("text2text"), KnowledgeAdapter(), steps=3, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.base.state_dict().items())
    batch = bed.batch("t5")
    adapted, last = bed.adapted(KnowledgeAdapter(), "t5"), []
    adapted.base.decoder.block[-1].layer[-1].register_forward_hook(lambda m, a, out: last.append(out))
    with torch.no_grad():
        adapted(batch)
        with adapted.using():
            adapted(batch)
    assert torch.equal(*last)
    moved = fitted.adaptation.placed()[0].network
    assert set(moved) == {"encoder", "decoder"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("beams", [1, 2])
def test_more_side_layers_than_blocks_write_the_same_with_a_cache(name, beams):
    model = bed.adapted(KnowledgeAdapter(reads="0, 1, -1", layers=2), name)
    given = {k: v for k, v in bed.batch(name).items() if not k.startswith("decoder")}
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    with torch.no_grad():
        cached = model.generate(**given, use_cache=True, **options)
        plain = model.generate(**given, use_cache=False, **options)
        with model.using():
            base = model.generate(**given, **options)
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, base)


def test_blocks_are_named_from_either_end_and_others_are_refused():
    assert numbers("-1", 3) == [2]
    assert numbers("2, 0, -1", 3) == [0, 2]
    with pytest.raises(OptionError, match="no block 3 of 3"):
        numbers("3", 3)
    with pytest.raises(OptionError, match="numbers of blocks"):
        numbers("last", 3)
    with pytest.raises(OptionError, match="no block 7"):
        Adaptation.new(KnowledgeAdapter(reads="7"), bed.base("bert"))
    with pytest.raises(OptionError, match="leaves nothing"):
        Adaptation.new(KnowledgeAdapter(reduction=64), bed.base("bert"))
