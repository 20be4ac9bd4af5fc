"""Spaces of layouts: counting, drawing, mutating and crossing within a budget."""

import random

import pytest

from luthier.errors import OptionError
from luthier.host import Adaptation
from luthier.host.structure import structure_of
from luthier.methods.low_rank.glora import GLoRA
from luthier.methods.mixed.noah import NOAH
from tests.host import bed


def spaces():
    base = bed.base("vit")
    structure = structure_of(base)
    for method in (GLoRA(rank=3), NOAH(size=4)):
        yield base, method, method.space([p.sites(structure) for p in method.parts()])


def test_a_count_is_what_an_adaptation_trains():
    for base, method, space in spaces():
        rng = random.Random(0)
        for genome in (space.largest, space.smallest, *(space.drawn(rng) for _ in range(5))):
            made = Adaptation.new(method, base, layouts=space.layouts(genome))
            assert made.counts()["method"] == space.count(genome)


def test_no_way_of_making_a_genome_exceeds_what_is_allowed():
    for _, _, space in spaces():
        rng, least, most = random.Random(1), space.count(space.smallest), space.count(space.largest)
        for share in (0.02, 0.2, 0.7):
            allowed = round(least + share * (most - least))
            a, b = space.drawn(rng, allowed), space.drawn(rng, allowed)
            for _ in range(20):
                a, b = space.mutated(a, rng, 0.3, allowed), space.crossed(a, b, rng, allowed)
                assert max(space.count(a), space.count(b)) <= allowed
        assert space.count(space.drawn(rng, least)) == least


def test_an_option_never_trains_more_than_the_one_before_it():
    for _, _, space in spaces():
        for i, gene in enumerate(space.genes):
            counts = []
            for at in range(len(gene.options)):
                genome = list(space.largest)
                genome[i] = at
                counts.append(space.count(tuple(genome)))
            assert counts == sorted(counts, reverse=True), gene.name


def test_a_child_has_every_group_whole_from_one_parent():
    for _, _, space in spaces():
        child = space.crossed(space.largest, space.smallest, random.Random(3))
        from_parents = {}
        for gene, x, big, small in zip(space.genes, child, space.largest, space.smallest, strict=True):
            if big != small:
                from_parents.setdefault(gene.group, set()).add(x == big)
        assert all(len(v) == 1 for v in from_parents.values())
        assert len({v for s in from_parents.values() for v in s}) == 2 or len(from_parents) < 4


def test_what_options_leave_out_is_not_searched():
    base = bed.base("vit")
    method = GLoRA(rank=2, a="none", c="vector", d="none")
    space = method.space([method.sites(structure_of(base))])
    assert not [g for g in space.genes if g.name.endswith((".A", ".D"))]
    assert {g.options for g in space.genes if g.name.endswith(".C")} == {("vector", "none")}


def test_a_budget_that_cannot_be_met_is_refused():
    method = NOAH(size=4)
    space = method.space([p.sites(structure_of(bed.base("vit"))) for p in method.parts()])
    with pytest.raises(OptionError, match="the smallest choice of this space trains"):
        space.drawn(random.Random(0), space.count(space.smallest) - 1)
