"""Attribution of hidden units: the formula, by finite differences and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.selection.attribution import attribution, highest


class Tiny(nn.Module):
    """Tokens of width 3, six hidden units, one class read from the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(3, 6), nn.Linear(6, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x + self.down(torch.tanh(self.up(x)))).mean(1))


def tiny():
    torch.manual_seed(0)
    return Tiny().double().requires_grad_(False), torch.randn(1, 5, 3, dtype=torch.float64)


@pytest.mark.parametrize("groups", [6, 3])
def test_it_is_the_derivative_by_a_gate_on_each_unit_at_each_token(groups):
    model, x = tiny()
    label = torch.tensor([1])

    def probability(gates):
        h = torch.tanh(model.up(x)) * gates.repeat_interleave(6 // groups, -1)
        return model.head((x + model.down(h)).mean(1)).softmax(-1)[0, 1]

    found = attribution({"it": (model.down, groups)}, lambda: nn.functional.cross_entropy(model(x), label))[
        "it"
    ]
    want = torch.zeros(groups)
    for unit in range(groups):
        for token in range(5):
            step = torch.zeros(1, 5, groups, dtype=torch.float64)
            step[0, token, unit] = 1e-5
            slope = (probability(1 + step) - probability(1 - step)) / 2e-5
            want[unit] = max(want[unit], slope.abs())
    assert (found > 0).all() and torch.allclose(found, want.float(), rtol=1e-4)
    assert not model.down._forward_pre_hooks


def test_a_layer_that_the_answer_does_not_read_scores_nothing():
    model, x = tiny()
    beside = nn.Linear(3, 4).double()

    def loss():
        beside(x)
        return -nn.functional.log_softmax(model(x), -1)[0, 0]

    found = attribution({"read": (model.down, 6), "beside": (beside, 3)}, loss)
    assert found["beside"].tolist() == [0, 0, 0] and found["read"].sum() > 0


def test_the_highest_stay_in_order():
    scores = torch.tensor([0.5, 3.0, 0.1, 2.0, 1.0])
    assert highest(scores, 0.4).tolist() == [1, 3, 4]
    assert highest(scores, 0.0).tolist() == [0, 1, 2, 3, 4]
    assert highest(scores, 0.99).tolist() == [1]
