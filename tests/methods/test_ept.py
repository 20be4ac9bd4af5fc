"""EPT: what its fusion, its spaces and its gate are, and what is left without them."""

from __future__ import annotations

import pytest
import torch

from luthier.errors import OptionError
from luthier.host import Adaptation, Adapted
from luthier.methods.prompts.dept import DePT
from luthier.methods.prompts.ept import EPT, combined, fused, gate
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.starts.normal import Normal
from tests.host import bed


def outputs(base, made, name):
    model = Adapted(base)
    with torch.no_grad(), model.attached(made):
        return bed.result(model, bed.batch(name))


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_without_fusion_and_with_one_space_it_is_dept(name):
    base, start = bed.base(name), Normal(std=1.0)
    dept = bed.shaken(Adaptation.new(DePT(length=4, start=start), base))
    made = Adaptation.new(EPT(length=4, start=start, fusion=False, spaces=1), base)
    values = {k: v for at in (*dept.at(0), *dept.at(1)) for k, v in at.values.items()}
    assert set(values) == set(made.at()[0].values)
    with torch.no_grad():
        for k, p in made.at()[0].values.items():
            p.copy_(values[k])
    assert torch.equal(outputs(base, made, name), outputs(base, dept, name))
    with torch.no_grad():
        made.at()[0].values["A"].zero_()
    plain = Adaptation.new(PromptTuning(length=4, start=start), base)
    with torch.no_grad():
        plain.at()[0].values["P"].copy_(values["P"])
    assert torch.equal(outputs(base, made, name), outputs(base, plain, name))


def test_at_the_start_all_of_it_is_the_prompt():
    base, start = bed.base("t5"), Normal(std=1.0)
    plain = Adaptation.new(PromptTuning(length=4, start=start), base, seed=2)
    made = Adaptation.new(EPT(length=4, start=start), base, seed=2)
    assert torch.equal(outputs(base, made, "t5"), outputs(base, plain, "t5"))


def test_the_formulas_token_by_token():
    rng = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    P, S, G, b, D, U = draw(3, 8), draw(16, 8), draw(4, 8), draw(1, 4), draw(3, 8, 2), draw(3, 2, 8)
    for i, row in enumerate(P):
        scores = torch.stack([row @ s for s in S]) / 8**0.5
        want = row + sum(w * s for w, s in zip(scores.softmax(0), S, strict=True))
        assert torch.allclose(fused(P, S)[i], want)
    g = gate(P, G, b)
    assert g.shape == (1, 4) and torch.allclose(g.sum(), torch.ones((), dtype=torch.float64))
    spaces = [P] + [P + P @ D[k] @ U[k] for k in range(3)]
    assert torch.allclose(combined(P, g, D, U), sum(g[0, k] * spaces[k] for k in range(4)))
    for k in range(4):
        assert torch.allclose(combined(P, torch.eye(4, dtype=torch.float64)[k][None], D, U), spaces[k])


def test_the_budget_pays_for_the_spaces_too():
    base = bed.base("bert")
    width = base.config.hidden_size
    for options in ({}, {"spaces": 1}, {"spaces": 2, "space_rank": 3, "max_positions": 100}):
        part = EPT(length=20, **options)
        trained = Adaptation.new(part, base).counts()["method"]
        assert 0 <= 100 * width - trained < part.max_positions + width
    with pytest.raises(OptionError, match="the rank is"):
        Adaptation.new(EPT(length=90), base)


def test_every_part_has_a_gradient_by_the_second_step():
    base, batch = bed.base("t5"), bed.batch("t5")
    made = Adaptation.new(EPT(length=4), base)
    model = Adapted(base)
    with model.attached(made):
        trained = made.trainable()
        optimiser = torch.optim.AdamW(trained.values(), lr=1e-2)
        for _ in range(2):
            optimiser.zero_grad()
            bed.result(model, batch).square().mean().backward()
            optimiser.step()
    assert not [n for n, p in trained.items() if not p.grad.abs().sum() > 0]
