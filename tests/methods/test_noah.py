"""NOAH's modules of a size for each block, and its space (S327)."""

import random

import pytest
import torch

from luthier.errors import ModelError, OptionError
from luthier.host import Adaptation, Adapted
from luthier.host.structure import structure_of
from luthier.methods.adapters.bottleneck import Adapter
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.mixed.noah import NOAH, BlockPrompt, SizedAdapter, SizedLoRA
from luthier.methods.prompts.deep_prompt import DeepPrompt
from luthier.search.supernet import Supernet, choose, space_of, taken
from tests.host import bed

SIZE = 6


def net(name="vit", method=None):
    """(base, a supernet with tensors moved from their start, its space)."""
    method = method or NOAH(size=SIZE)
    base = bed.base(name)
    made = bed.shaken(Adaptation.new(Supernet(of=method), base), 0.2)
    return base, made, space_of(method, made)


def out(base, made, x, name="main"):
    model = Adapted(base)
    with model.attached(made, name):
        return bed.result(model, x)


def test_size_zero_everywhere_is_the_frozen_model_exactly():
    base, made, space = net()
    x = bed.batch("vit")
    plain = bed.result(Adapted(base), x)
    assert not torch.allclose(out(base, made, x), plain, atol=1e-3)
    zero = {i: {site: {"size": 0} for site in here} for i, here in space.layouts(space.largest).items()}
    choose(made, zero)
    assert torch.equal(out(base, made, x), plain) and space.numbers(zero) == 0
    alone = taken(made, NOAH(size=SIZE), zero, base)
    assert torch.equal(out(base, alone, x), plain) and alone.counts()["method"] == 0


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_slice_is_a_module_of_its_own_with_the_first_rows_and_columns(name):
    base, made, space = net(name)
    x = bed.batch(name)
    for turn in range(4):
        genome = space.drawn(random.Random(turn))
        layouts = space.layouts(genome)
        choose(made, layouts)
        shared = out(base, made, x)
        alone = taken(made, NOAH(size=SIZE), layouts, base)
        assert torch.equal(out(base, alone, x), shared)
        assert alone.counts()["method"] == space.count(genome)


def test_slices_of_each_kind_equal_the_known_modules():
    """Of size k: an adapter and LoRA (scale 1) of width and rank k, deep prompts of k tokens, given the first rows and columns."""
    k = 2
    x = bed.batch("vit")
    known = {
        SizedAdapter(size=SIZE): Adapter(width=k, activation="gelu"),
        SizedLoRA(size=SIZE): LoRA(
            rank=k, alpha=k, targets="attention.query | attention.key | attention.value"
        ),
        BlockPrompt(size=SIZE): DeepPrompt(length=k),
    }
    for sized, plain in known.items():
        base = bed.base("vit")
        large = bed.shaken(Adaptation.new(Supernet(of=sized), base), 0.2)
        choose(large, {"0": {a.site.name: {"size": k} for a in large.at()}})
        small = Adaptation.new(plain, base)
        for mine, theirs in zip(small.at(), large.at(), strict=True):
            for key, value in mine.values.items():
                value.data.copy_(theirs.values[key][tuple(slice(0, n) for n in value.shape)])
        bed.close(out(base, large, x), out(base, small, x), 1e-6)


def test_a_depth_fills_the_first_blocks():
    _, _, space = net()
    names = [g.name for g in space.genes]
    genome = list(space.largest)
    genome[names.index("sized_lora.depth")] = space.genes[names.index("sized_lora.depth")].options.index(2)
    sizes = {site: layout["size"] for site, layout in space.layouts(tuple(genome))["1"].items()}
    blocks = {s.name: s.layer for s in space.sites[1]}
    assert all((size > 0) == (blocks[site] < 2) for site, size in sizes.items())
    assert space.genes[names.index("block_prompt.depth")].options == (3, 2, 1)


def test_a_fused_projection_is_one_module():
    sites = SizedLoRA().sites(structure_of(bed.base("gpt2")))
    assert {s.role for s in sites} == {"attention.qkv"} and all(
        s.out_features == 3 * s.in_features for s in sites
    )


def test_rows_that_tokens_do_not_serve_and_scaled_ones():
    base = bed.base("bert")
    x = bed.batch("bert", rows=4)
    parts = [bed.shaken(Adaptation.new(BlockPrompt(size=n), base, seed=n), 0.3, n) for n in (2, 3)]
    alone = [out(base, p, x) for p in parts]
    model = Adapted(base)
    plain = bed.result(model, x)
    for name, p in zip("ab", parts):
        model.attach(name, p)
    names = ["a", None, "b", "a"]
    mixed = bed.result(model, {**x, "adaptation": names})
    want = torch.stack([(plain if n is None else alone["ab".index(n)])[i] for i, n in enumerate(names)])
    bed.close(mixed, want, 1e-5)
    with model.using("a", "b"):
        both = bed.result(model, x)
    for name in "ab":
        model.detach(name)
    swapped = Adapted(base)
    for name, p in zip("ba", reversed(parts)):
        swapped.attach(name, p)
    with swapped.using("b", "a"):
        bed.close(bed.result(swapped, x), both, 1e-5)  # tokens of a block have no order
    for name in "ba":
        swapped.detach(name)
    bed.close(out(base, 0.0 * parts[0], x), plain, 1e-6)


def test_masked_tokens_stay_masked_behind_a_blocks_tokens():
    base = bed.base("bert")
    made = bed.shaken(Adaptation.new(BlockPrompt(size=3), base), 0.3)
    x = bed.batch("bert")
    other = {**x, "input_ids": torch.where(x["attention_mask"] == 0, 5, x["input_ids"])}
    assert torch.equal(out(base, made, x), out(base, made, other))


@pytest.mark.parametrize("name", ["llama", "t5", "gpt2"])
def test_blocks_that_share_positions_or_a_cache_are_refused(name):
    base = bed.base(name)
    with pytest.raises(ModelError, match="share positions or a cache"):
        Adapted(base).attach("main", Adaptation.new(NOAH(size=2), base))


def test_nothing_is_no_method():
    with pytest.raises(OptionError, match="is nothing"):
        NOAH(adapters=False, lora=False, prompts=False).parts()
