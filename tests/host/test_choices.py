"""What a method file may write: options and cards, sources by row, starts with statistics, members, parts under one name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import OptionError, RunError
from luthier.host import Adaptation, Adapted, Method, Source, Spec, Start, T, method, normal
from luthier.host.calibrate import calibrate
from luthier.host.files import load, save
from luthier.host.options import from_card, make, register, to_card
from luthier.host.places import ActivationEdit
from luthier.host.probe import cannot_matter
from luthier.methods.adapters.bottleneck import Adapter
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.sparse.parameters import BitFit
from tests.host import bed


@register("test_one_per_task")
class OnePerTask(Source):
    """A set of tensors per task; the batch's `task` picks one for each row."""

    by_row = True
    tasks: int = 2

    def specs(self, part, site, layout, wanted):
        return {k: s._replace(shape=(self.tasks, *s.shape)) for k, s in wanted.items()}

    def begin(self, part, site, draw):
        many = [draw() for _ in range(self.tasks)]
        return {k: torch.stack([m[k] for m in many]) for k in many[0]}

    def make(self, part, site, t, ctx, made=None):
        rows = ctx.need("task")
        return T({k: v[rows] for k, v in t.items()})


@register("test_principal_inputs")
class PrincipalInputs(Start):
    """A: principal directions of the inputs; needs their second moment."""

    needs = ("input_moment",)

    def fill(self, site, specs, weight, statistics, rng):
        rank = specs["A"].shape[0]
        vectors = torch.linalg.eigh(statistics["input_moment"]).eigenvectors[:, -rank:]
        return {"A": vectors.T.float(), "B": torch.zeros(specs["B"].shape)}


@method("test_fusion", targets="mlp.down")
class Fusion(ActivationEdit):
    """Attention over what other adapters do at the same site."""

    members = ("adapters",)

    def tensors(self, site, layout):
        d = site.out_features
        return {"Q": Spec((d, d), normal(0.2)), "K": Spec((d, d), normal(0.2))}

    def edit(self, h, t, ctx):
        each = torch.stack([m(h) for m in t.members], -2)
        score = ((h @ t.Q.mT)[..., None, :] * (each @ t.K.mT)).sum(-1).softmax(-1)
        return (score[..., None] * each).sum(-2)


@method("test_two_parts")
class TwoParts(Method):
    rank: int = 2

    def parts(self):
        return LoRA(rank=self.rank), Adapter(width=self.rank)


@torch.no_grad()
def test_a_source_by_row_serves_each_row_with_its_own() -> None:
    base = bed.base("bert")
    model, x = Adapted(base), bed.batch("bert")
    model.attach("main", bed.shaken(Adaptation.new(LoRA(rank=2, source=OnePerTask(tasks=3)), base)))
    tasks = torch.tensor([2, 0, 1, 0])
    together = bed.result(model, {**x, "task": tasks})
    for i in range(4):
        row = {k: v[i : i + 1] for k, v in x.items()}
        bed.close(bed.result(model, {**row, "task": tasks[i : i + 1]}), together[i : i + 1], 1e-5)
    with pytest.raises(RunError, match="needs 'task'"):
        model(x)
    with model.given(task=tasks):
        assert torch.equal(bed.result(model, x), together)


def test_a_start_gets_its_statistics_or_says_what_it_needs() -> None:
    base = bed.base("bert")
    model, x = Adapted(base), bed.batch("bert")
    part = LoRA(rank=3, start=PrincipalInputs(), targets="attention.query")
    with pytest.raises(OptionError, match="input_moment"):
        Adaptation.new(part, base)
    found = calibrate(model, part.sites(model.structure), ("input_moment",), [x])
    a = Adaptation.new(part, base, statistics=found)
    rows = a.at()[0].values["A"]
    assert torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-5)
    with pytest.raises(OptionError, match="No statistic"):
        calibrate(model, part.sites(model.structure), ("nothing",), [x])


def test_members_are_frozen_and_travel_in_the_file_or_by_hash(tmp_path) -> None:
    base, x = bed.base("bert"), bed.batch("bert")
    adapters = {k: bed.shaken(Adaptation.new(Adapter(width=4), base), 0.3, i) for i, k in enumerate("ab")}
    fusion = Adaptation.new(Fusion(), base, members=adapters)
    assert not any(n.startswith("members.") for n in fusion.trainable())
    model = Adapted(base)
    model.attach("main", fusion)
    got = bed.result(model, x)
    got.sum().backward()
    assert all(p.grad is None for p in fusion.members.parameters())
    with torch.no_grad():
        model.detach()
        for refer in (False, True):
            save(fusion, tmp_path / str(refer), "base", refer=refer)
            again = load(tmp_path / str(refer), base, "base", library=list(adapters.values()))
            with model.attached(again):
                assert torch.equal(bed.result(model, x), got)
    sizes = [(tmp_path / str(r) / "tensors.safetensors").stat().st_size for r in (False, True)]
    assert sizes[1] < sizes[0]
    with pytest.raises(Exception, match="was not given"):
        load(tmp_path / "True", base, "base")


def test_several_parts_under_one_name_are_one_adaptation() -> None:
    model = bed.adapted(TwoParts(), "bert")
    assert {n.split(".")[1] for n in model.adaptations["main"].trainable()} == {"0", "1"}


def test_key_biases_are_reported_as_without_effect() -> None:
    idle = cannot_matter(Adaptation.new(BitFit(), base := bed.base("bert")), base)
    assert len(idle) == 3 and all("/key.values.bias" in n for n in idle)


@settings(max_examples=50, deadline=None)
@given(rank=st.integers(1, 64), alpha=st.floats(0, 100), which=st.sampled_from(["A", "B"]))
def test_cards_round_trip(rank: int, alpha: float, which: str) -> None:
    made = make(LoRA, {"rank": str(rank), "alpha": alpha, "start.which": which})
    assert from_card(to_card(made)) == made and made.start.which == which


@pytest.mark.parametrize(
    ("given_options", "words"),
    [
        ({"rank": "x"}, "rank='x'"),
        ({"rank": 0}, "greater than 0"),
        ({"rnk": 4}, "Did you mean 'rank'"),
        ({"start": "zeroo"}, "Did you mean 'zero'"),
        ({"start.wich": 1}, "Did you mean 'which'"),
        ({"rank.deep": 1}, "not a choice"),
    ],
)
def test_unknown_and_unfit_options_name_the_fix(given_options: dict, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        make(LoRA, given_options)


def test_options_are_values() -> None:
    assert LoRA(rank=4) == LoRA(rank=4) != LoRA(rank=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        LoRA().rank = 3  # type: ignore[misc]


def test_a_rank_above_the_layers_is_refused_before_anything_is_made() -> None:
    with pytest.raises(OptionError, match="rank=33 is above"):
        Adaptation.new(LoRA(rank=33), bed.base("bert"))
