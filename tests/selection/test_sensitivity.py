"""Sensitivity (S147): sums of squared gradients, and what the highest of them pay for within a budget."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.selection.sensitivity import allot, squared_gradients


def test_the_sum_of_squared_gradients_is_autograds():
    rng = torch.Generator().manual_seed(0)
    w, b = (torch.randn(s, generator=rng, requires_grad=True) for s in ((3, 4), (3,)))
    batches = [torch.randn(5, 4, generator=rng) for _ in range(3)]
    loss = lambda x: (x @ w.T + b).tanh().square().mean()
    found = squared_gradients(
        {"w": w, "b": b}, [lambda held, x=x: torch.autograd.grad(loss(x), list(held)) for x in batches]
    )
    for name, tensor in (("w", w), ("b", b)):
        want = sum(torch.autograd.grad(loss(x), tensor)[0] ** 2 for x in batches)
        assert torch.allclose(found[name], want, rtol=1e-6)
        assert found[name].max() > 0


def test_a_matrix_gets_a_module_where_its_marks_pay_for_it_and_a_vector_is_tuned_whole():
    scores = {
        "m": torch.tensor([[9.0, 8.0, 0.1], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1]]),
        "v": torch.tensor([7.0, 6.0, 0.0, 0.0, 0.0]),
        "n": torch.tensor([[5.0, 0.0], [0.0, 4.0]]),
    }
    # 2 marks: worth 3 each, they pay for a module of 6
    found = allot(scores, {"m": 6}, 6, worth=3)
    assert found.modules == {"m"} and not found.entries and found.numbers == 6
    # a module of 7 needs 3 marks; a vector of 5 more than 1
    found = allot(scores, {"m": 7}, 9, worth=3)
    assert not found.modules and found.numbers == 9
    assert {n: at.tolist() for n, at in found.entries.items()} == {
        "m": [0, 1],
        "v": [0, 1, 2, 3, 4],
        "n": [0, 3],
    }
    # one mark of the vector alone is not more than a fifth; what is left goes to single entries, the vector's second is passed over
    found = allot(scores, {"m": 7}, 3, worth=3)
    assert {n: at.tolist() for n, at in found.entries.items()} == {"m": [0, 1], "v": [0]}


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(5, 260),
    st.floats(1, 20),
    st.floats(0.05, 0.9),
)
def test_the_budget_is_used_up_and_never_overdrawn(seed, budget, worth, whole):
    rng = torch.Generator().manual_seed(seed)
    shapes = {"a": (8, 8), "b": (8,), "c": (6, 12), "d": (12,), "e": (4, 4, 3)}
    scores = {n: torch.rand(s, generator=rng) ** 4 for n, s in shapes.items()}
    costs = {"a": 32, "c": 36}
    found = allot(scores, costs, budget, worth=worth, whole=whole)
    entries = {n: set(at.tolist()) for n, at in found.entries.items()}
    assert found.numbers == sum(costs[n] for n in found.modules) + sum(map(len, entries.values()))
    assert found.numbers <= budget and not found.modules & entries.keys()
    free = sum(scores[n].numel() - len(entries.get(n, ())) for n in scores if n not in found.modules)
    assert found.numbers == budget or free == 0
    for name, at in entries.items():  # of each tensor the highest
        flat = scores[name].flatten()
        rest = torch.tensor([i not in at for i in range(len(flat))])
        assert not rest.any() or flat[list(at)].min() >= flat[rest].max()
