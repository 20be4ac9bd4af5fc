"""A meta-learned regulator of a prompt's gradient (Pan et al. 2023, "Self-supervised Meta-Prompt Learning with Meta-Gradient Regularization", S306).

psi(g) = (1 - z) f(g) + z g, by rows    g: (rows, width)
f(g) = x |g| / |x|,  x = layers of relu(U V x + b) from x = g    U: (width, rank)  V: (rank, width)  b: (width,)    so f(g) >= 0
z = sigmoid(w2 relu(W1 s + b1) + b2), one number    s: (width,), the mean encoder state of the rows that g came from    W1: (hidden, width)

Where nothing was learned (`learned` = 0) z is 1, and psi leaves a gradient as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import torch
from torch import Tensor
from torch.nn.functional import linear

from luthier.host.part import Spec, normal, zeros

PREFIX = "psi_"
"""Of the names of the regulator's tensors among a part's."""
SMALLEST = 1e-12


def specs(width: int, rank: int, layers: int, hidden: int) -> dict[str, Spec]:
    """The regulator's tensors. They are kept with the prompt and never train in a run of their own: meta-learning trains them."""
    made = {}
    for i in range(layers):
        made[f"u{i}"] = Spec((width, rank), normal(rank**-0.5))
        made[f"v{i}"] = Spec((rank, width), normal(width**-0.5))
        made[f"b{i}"] = Spec((width,), zeros)
    made |= {"gate_w1": Spec((hidden, width), normal(width**-0.5)), "gate_b1": Spec((hidden,), zeros)}
    made |= {"gate_w2": Spec((1, hidden), normal(hidden**-0.5)), "gate_b2": Spec((1,), zeros)}
    made["learned"] = Spec((1,), zeros)
    return {PREFIX + name: spec._replace(trained=False) for name, spec in made.items()}


def direction(g: Tensor, t: Mapping[str, Tensor]) -> Tensor:
    """f(g): another direction for every row, of the row's own norm. A row whose layers are all silent becomes zero."""
    x = g
    for i in count():
        if f"{PREFIX}u{i}" not in t:
            break
        x = linear(linear(x, t[f"{PREFIX}v{i}"]), t[f"{PREFIX}u{i}"], t[f"{PREFIX}b{i}"]).relu()
    return x * (g.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True).clamp(min=SMALLEST))


def gate(state: Tensor, t: Mapping[str, Tensor]) -> Tensor:
    """z, (1,), from the mean encoder state (width,)."""
    hidden = linear(state, t[f"{PREFIX}gate_w1"], t[f"{PREFIX}gate_b1"]).relu()
    z = torch.sigmoid(linear(hidden, t[f"{PREFIX}gate_w2"], t[f"{PREFIX}gate_b2"]))
    return torch.where(t[f"{PREFIX}learned"] > 0, z, torch.ones_like(z))


def regulated(g: Tensor, z: Tensor | float, t: Mapping[str, Tensor]) -> Tensor:
    """psi(g) under the gate z."""
    return (1 - z) * direction(g, t) + z * g


def states(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The states of all real tokens, (tokens, width). hidden: (rows, n, width); mask: (rows, n). Their mean is s."""
    return (hidden.flatten(0, 1) if mask is None else hidden[mask.bool()]).float()
