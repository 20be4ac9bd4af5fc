"""PEGO (S174): the two terms as plain sums over whole products, what they do, and what is left without them."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.low_rank.pego import ENTRIES, PEGO, diversifying, preserving
from tests.host import bed


def group(count: int = 3, rank: int = 2, out: int = 7, inputs: int = 5):
    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    ups, downs = [draw(out, rank) for _ in range(count)], [draw(rank, inputs) for _ in range(count)]
    return draw(out, inputs), ups, downs


def test_the_terms_are_sums_of_absolute_entries_of_whole_products():
    weight, ups, downs = group()
    whole = [b @ a for b, a in zip(ups, downs, strict=True)]
    preserve = sum((weight @ d.T).abs().sum() for d in whole)
    diversify = sum((whole[i] @ whole[j].T).abs().sum() for i in range(3) for j in range(i + 1, 3))
    assert torch.allclose(preserving(weight, ups, downs), preserve)
    assert torch.allclose(diversifying(ups, downs), diversify)
    assert diversifying(ups[:1], downs[:1]) == 0


def test_orthogonal_members_have_no_second_term():
    _, ups, _ = group()
    downs = list(torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q.split(2))
    assert diversifying(ups, downs) < 1e-12


class Standing:
    """As much of a run as the terms read."""

    def __init__(self, part, base):
        self.adapted = Adapted(base)
        self.main = bed.shaken(Adaptation.new(part, base))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_they_are_summed_over_sites_and_scaled_to_the_papers_entries(name):
    base = bed.base(name)
    part = PEGO(rank=2, group=2)
    run = Standing(part, base)
    total = 0.0
    for at in run.main.at():
        rows = slice(*at.site.rows) if at.site.rows else slice(None)
        stored = base.get_submodule(at.site.path).weight
        weight = (stored.T if at.site.transposed else stored)[rows]
        ups, downs = at.values["B"].split(2, 1), at.values["A"].split(2, 0)
        whole = [b @ a for b, a in zip(ups, downs, strict=True)]
        own = sum((weight @ d.T).abs().sum() for d in whole) + (whole[0] @ whole[1].T).abs().sum()
        total = total + own * ENTRIES / at.site.out_features**2
    assert torch.allclose(part.orthogonality(run), total, rtol=1e-4)


def test_the_group_is_a_lora_of_its_ranks_together():
    base, x = bed.base("bert"), bed.batch("bert")
    one, other = (Adaptation.new(p, base) for p in (PEGO(rank=2, group=3), LoRA(rank=6, alpha=6.0)))
    bed.shaken(one)
    for a, b in zip(one.at(), other.at(), strict=True):
        b.values.load_state_dict(a.values.state_dict())
    model, found = Adapted(base), []
    with torch.no_grad():
        for made in (one, other):
            with model.attached(made):
                found.append(bed.result(model, x))
    assert torch.equal(*found)


def test_a_group_too_large_for_a_layer_is_refused():
    with pytest.raises(OptionError, match="above min"):
        Adaptation.new(PEGO(rank=16, group=4), bed.base("bert"))
