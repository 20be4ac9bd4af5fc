"""p-adapter: an adapter behind attention that passes messages on the attention's own map (Wu et al. 2023, "p-Laplacian Adaptation for Generative Pre-trained Vision-Language Models", S211).

F = down(W_o [q; v]), split over heads    M_ij = A_ij (A_ij |F_i - F_j|^2 + 1e-8)^((p - 2) / 2)    F'_i = sum_j M_ij F_j / (sum_j M_ij + 2 mu / p)
h <- h + up(gelu(gate(h)) * F')    i: queries, j: values, A: the map of this attention, with its own mask; h = W_o attention
down, gate: (nodes, out)  up: (out, nodes)  biases: (nodes,), (nodes,), (out,)  p: (1,)  m: (1,), mu <- mu (2 + tanh m)
nodes = heads (head_dim // reduction)
trained: 3 * heads * (head_dim // reduction) * out + 2 * heads * (head_dim // reduction) + out + 2 per site
Step 0 is the base (up = 0). Acts on activations: it cannot merge. At p = 2, F' is A F_v / (1 + mu (2 + tanh m)).

Differs: the 1e-8 stands inside the square root instead of in every difference; no self term, which falls out of the public code as well. Where
the model turns queries by position (rotary), they are taken so. `pooled` averages keys that are seen, into groups of one size each, where the
public code also averages over padding. Key/value heads that several query heads share are repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from luthier.errors import OptionError
from luthier.host.bridge import LEAST, Attended
from luthier.host.functional import rowwise
from luthier.host.part import Method, Spec, method, zeros
from luthier.host.places import ActivationEdit
from luthier.methods.adapters.bottleneck import Adapter, kaiming

FLOOR = 1e-8
"""Inside the square root, so that equal nodes have a finite weight."""


def messages(a: Tensor, queries: Tensor, values: Tensor, p: Tensor | float, mu: Tensor | float) -> Tensor:
    """F' of the queries' nodes. a: (..., n, m); queries: (..., n, dim); values: (..., m, dim) -> (..., n, dim)."""
    gaps = torch.cdist(queries, values, compute_mode="donot_use_mm_for_euclid_dist").square()
    m = a * (a * gaps + FLOOR) ** ((p - 2) / 2)
    return (m @ values) / (m.sum(-1, keepdim=True) + 2 * mu / p)


def pooling(seen: Attended, groups: int) -> Tensor:
    """(rows, keys, groups): averages of the keys that any query sees, in their order, in groups of one size."""
    rows, keys = len(seen.k), seen.k.shape[2]
    there = torch.ones(rows, keys, dtype=torch.bool, device=seen.k.device)
    if seen.mask is not None:
        shown = seen.mask if seen.mask.dtype == torch.bool else seen.mask > LEAST
        there = shown.flatten(1, 2).any(1).expand(rows, -1)
    rank, many = there.cumsum(1) - 1, there.sum(1, keepdim=True)
    group = (rank * groups // many.clamp(min=1)).clamp(0, groups - 1)
    picked = F.one_hot(group, groups) * there[..., None]
    return picked / picked.sum(1, keepdim=True).clamp(min=1)


@method("p_laplacian", targets="*attention.output", rate=2e-3, identity_start=True)
class PLaplacian(ActivationEdit):
    """The messages alone, behind every attention."""

    reduction: PositiveInt = 8  # a head's nodes have its width divided by this
    p: PositiveFloat = 1.5  # exponent at the start; below 2 near nodes count more
    mu: PositiveFloat = 1.0  # how much messages are damped: 0.1 to 10
    pooled: NonNegativeInt = 0  # keys of a cross-attention are averaged to so many; 0: they are not

    sees_attention = True

    def check(self, sites):
        for s in sites:
            if s.head_dim < self.reduction:
                raise OptionError(
                    f"{self.name}: reduction={self.reduction} leaves nothing of heads of width {s.head_dim} at {s.name}. Choose a smaller one."
                )

    def layout(self, site):
        return {"pools": self.pooled > 0 and site.role.startswith("cross_")}

    def tensors(self, site, layout):
        nodes, width = site.heads * (site.head_dim // self.reduction), site.out_features
        return {
            "down": Spec((nodes, width), kaiming),
            "down_bias": Spec((nodes,), zeros),
            "gate": Spec((nodes, width), kaiming),
            "gate_bias": Spec((nodes,), zeros),
            "up": Spec((width, nodes), zeros),
            "up_bias": Spec((width,), zeros),
            "p": Spec((1,), lambda shape, rng: torch.full(shape, self.p)),
            "m": Spec((1,), zeros),
        }

    def nodes(self, x: Tensor, t) -> Tensor:
        """What attention calls queries or values, (rows, heads, n, head_dim) -> nodes, (rows, heads, n, dim) in single precision."""
        heads, joined = x.shape[1], x.transpose(1, 2).flatten(2)
        made = joined @ (t.down @ t.weight.to(t.down.dtype)).mT
        shift = t.down_bias if t.bias is None else (t.down @ t.bias.to(t.down.dtype)) + t.down_bias
        made = made + rowwise(shift, made)
        return (
            made.to(torch.promote_types(made.dtype, torch.float32)).unflatten(-1, (heads, -1)).transpose(1, 2)
        )

    def edit(self, h, t, ctx):
        seen: Attended = t.seen
        a, groups = seen.weights(), seen.q.shape[1] // seen.v.shape[1]
        queries, values = self.nodes(seen.q, t), self.nodes(seen.v.repeat_interleave(groups, 1), t)
        if t.layout["pools"]:
            pool = pooling(seen, self.pooled).to(a.dtype)[:, None]
            a, values = a @ pool, pool.mT @ values
        p, m = (v.to(a.dtype).reshape(-1, 1, 1, 1) for v in (t.p, t.m))
        new = messages(a, queries, values, p, self.mu * (2 + torch.tanh(m)))
        gate = h @ t.gate.mT
        inner = F.gelu(gate + rowwise(t.gate_bias, gate)) * new.transpose(1, 2).flatten(2).to(gate.dtype)
        change = inner @ t.up.mT
        return h + (change + rowwise(t.up_bias, change)).to(h.dtype)


@method("p_adapter", rate=2e-3, identity_start=True)
class PAdapter(Method):
    """Messages behind every attention, and an ordinary adapter behind every feed-forward layer."""

    reduction: PositiveInt = 8  # a head's nodes have its width divided by this
    p: PositiveFloat = 1.5  # exponent at the start; below 2 near nodes count more
    mu: PositiveFloat = 1.0  # how much messages are damped: 0.1 to 10
    pooled: NonNegativeInt = 0  # keys of a cross-attention are averaged to so many; 0: they are not
    width: PositiveInt = 32  # bottleneck width of the ordinary adapters
    attention: str = "*attention.output"  # behind which attentions

    def parts(self):
        options: Any = {"reduction": self.reduction, "p": self.p, "mu": self.mu, "pooled": self.pooled}
        return (PLaplacian(targets=self.attention, **options), Adapter(width=self.width))
