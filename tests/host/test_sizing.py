"""Budgets instead of ranks: the largest size that trains no more, counted in real parameters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import luthier as lt
from luthier.compare.budget import Budget, of_parameters
from luthier.compare.sized import sized_methods
from luthier.errors import OptionError
from luthier.host import Adaptation
from luthier.host.sizing import SIZES, count, size_option, sized
from luthier.starts.eva import allocated
from tests.host import bed

BASES = {name: bed.base(name) for name in ("bert", "gpt2")}
SIZED = [
    "lora",
    "dora",
    "pissa",
    "loha",
    "vera",
    "randlora",
    "fourierft",
    "adapter",
    "prompt_tuning",
    "p_tuning_v2",
]


def trained(method, base) -> int:
    return sum(p.numel() for p in Adaptation.new(method, base).trainable().values())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", [*SIZED, "bitfit", "lst", "mix_and_match", "soka", "half_fine_tuning"])
def test_the_count_is_that_of_a_made_adaptation(name, base):
    method = lt.methods.make(name, {o: 4 for o in SIZES if o in lt.methods.get(name).__dataclass_fields__})
    assert count(method, BASES[base]) == trained(method, BASES[base])


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(SIZED), st.integers(200, 9000))
def test_the_largest_that_fits_and_no_larger(name, allowed):
    base, method = BASES["bert"], lt.methods.make(name)
    option = size_option(method)
    try:
        found = sized(method, base, allowed)
    except OptionError:
        sizes = range(1, 33)
        for size in sizes:  # nothing that is accepted fits
            try:
                numbers = count(lt.methods.make(name, {option: size}), base)
            except OptionError:
                continue
            assert numbers > allowed
        return
    size = getattr(found, option)
    assert trained(found, base) <= allowed
    for other in (size - 1, size + 1):  # one of them trains more: too much, or refused
        try:
            numbers = count(lt.methods.make(name, {option: other}), base) if other else 0
        except OptionError:
            continue
        assert numbers > allowed or numbers <= trained(found, base)


def test_what_has_no_size_or_does_not_fit_is_refused():
    base = BASES["bert"]
    with pytest.raises(OptionError, match="has no size that a budget could set"):
        sized(lt.methods.make("bitfit"), base, 1000)
    with pytest.raises(OptionError, match="rank=1, its smallest size here, it trains"):
        sized(lt.methods.make("lora"), base, 10)
    with pytest.raises(OptionError, match="for parameters, not for epochs"):
        of_parameters("epochs=2")
    with pytest.raises(OptionError, match="says nothing of parameters"):
        of_parameters("")


def test_eva_shares_numbers_out_instead_of_directions():
    import torch

    found = sized(lt.methods.make("eva"), BASES["bert"], 5000)
    assert found.start.numbers == 5000 and found.rank >= 1
    shares = {"wide": torch.tensor([0.5, 0.3]), "narrow": torch.tensor([0.4, 0.2, 0.1])}
    assert allocated(shares, 3, 10, {"wide": 6, "narrow": 2}) == {"wide": 1, "narrow": 2}
    assert allocated(shares, 3, 4) == {"wide": 2, "narrow": 2}


def test_a_comparison_sizes_what_has_a_size():
    tiny_model = SimpleNamespace(base=BASES["bert"])
    found = sized_methods(
        [lt.methods.make("lora"), lt.methods.make("bitfit")], tiny_model, Budget.parse("params=3000")
    )
    assert count(found[0], tiny_model.base) <= 3000 and found[1] == lt.methods.make("bitfit")
    with pytest.raises(OptionError, match="Add params"):
        sized_methods([lt.methods.make("lora")], tiny_model, Budget.parse("epochs=1"))
