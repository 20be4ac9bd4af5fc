"""Evolution on a space whose scores are known."""

import pytest

from luthier.errors import OptionError
from luthier.host.part import Spec, zeros
from luthier.host.places import WeightEdit
from luthier.host.sites import Site
from luthier.search.evolution import Evolution, evolve
from luthier.selection.space import Gene, Space

LAYERS, SIZES = 8, (4, 3, 2, 1, 0)
SITES = [Site(name=f"layer{i}", path=f"layer{i}", role="mlp.up", out_features=1) for i in range(LAYERS)]


class Sized(WeightEdit):
    def tensors(self, site, layout):
        return {"v": Spec((layout["size"],), zeros)}


def toy():
    genes = [Gene(s.name, s.name, SIZES) for s in SITES]
    return Space(
        (Sized(),), [SITES], genes, lambda chosen: {"0": {k: {"size": v} for k, v in chosen.items()}}
    )


def worth(space):
    """The later a layer, the more its numbers are worth: under a budget the best fills the last ones."""
    return lambda genome: sum(i * s["size"] for i, s in enumerate(space.layouts(genome)["0"].values()))


def test_the_best_under_a_budget_is_found_and_never_exceeds_it():
    space, allowed = toy(), 12
    found = evolve(
        space, allowed, worth(space), Evolution(rounds=15, population=40, mutations=20, crossovers=20)
    )
    best = min(found, key=lambda c: c.order)
    assert all(c.parameters == space.count(c.genome) <= allowed for c in found)
    assert best.score == 4 * (7 + 6 + 5)
    at_random = [c.score for c in found if c.round == 0]
    assert best.score > max(at_random)


def test_nobody_is_scored_twice_and_an_interrupted_search_goes_on_where_it_stopped():
    space, how = toy(), Evolution(rounds=4, population=12, parents=3, mutations=6, crossovers=6, seed=5)
    asked = []

    def score(genome):
        asked.append(genome)
        return worth(space)(genome)

    whole = evolve(space, 10, score, how)
    assert len(asked) == len(set(asked)) == len(whole)
    known = {c.genome: c.score for c in whole[:20]}
    asked.clear()
    assert evolve(space, 10, score, how, known=known) == whole
    assert not set(asked) & set(known) and len(asked) == len(whole) - 20


def test_another_seed_looks_elsewhere_and_a_small_space_runs_out():
    space = toy()
    runs = [evolve(space, 10, worth(space), Evolution(rounds=1, population=9, mutations=0, crossovers=0, seed=s)) for s in (0, 0, 1)]  # fmt: skip
    assert runs[0] == runs[1] != runs[2]
    tiny = Space((Sized(),), [SITES[:1]], [Gene("layer0", "layer0", SIZES)], lambda c: {"0": {k: {"size": v} for k, v in c.items()}})  # fmt: skip
    found = evolve(tiny, 4, lambda g: 0.0, Evolution(rounds=3, population=50))
    assert len(found) == len(SIZES)
    assert min(found, key=lambda c: c.order).parameters == 0  # of equals the one that trains least


@pytest.mark.parametrize(("options", "message"), [({"rounds": 0}, "rounds=0"), ({"population": 10}, "together at most"), ({"chance": 0}, "chance=0")])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Evolution(**options).check()
