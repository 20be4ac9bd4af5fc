"""AdapterFusion: attention over what trained adapters add (Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", S078).

h <- h + sum_n w_n V z_n    z_n = adapter_n(h) - h    w = softmax_n((Q h + q) . K z_n), for every token of every layer
Q, K, V: (out, out)  q: (out,)    trained: 3 * out * out + out per site
loss = task loss + pull * sum over sites of ||V - I||^2
Not the base at step 0: V is the identity, and the adapters act. With one adapter it says what that adapter says. It cannot merge.

It needs the adapters, which stay as they are and travel in its file: train each with `luthier fit --method adapter`, then
`luthier fit --method adapter_fusion --member a=DIR --member b=DIR`, or fit(members={"a": it, "b": other}). The target's own may be
one of them. Which weight each adapter has: `luthier instruments fusion`.

Differs: the adapters have no layer norm between sub-layer and adapter, so h is what the sub-layer returns. The paper's bias of K is
left out: it adds the same to every score, so that the softmax does not see it. Members are edits of what a module returns; parallel
adapters, which read its input, are refused.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch.nn import functional as F

from luthier.errors import OptionError
from luthier.host.part import Phase, Spec, method, normal, zeros
from luthier.host.places import ActivationEdit

NOTE = "fusion"
"""Under this name a forward notes, site by site, the site's name and the weights there: (rows, tokens, members)."""


def nearly_identity(shape, rng):
    """1 on the diagonal, 1e-6 off it."""
    return torch.full(shape, 1e-6).fill_diagonal_(1.0)


@method("adapter_fusion", targets="mlp.down", rate=5e-4)
class AdapterFusion(ActivationEdit):
    pull: NonNegativeFloat = 0.01  # weight of ||V - I||^2 in the loss

    members = ("trained adapters",)

    def tensors(self, site, layout):
        d = site.out_features
        return {
            "Q": Spec((d, d), normal(0.02)),
            "Q_bias": Spec((d,), zeros),
            "K": Spec((d, d), normal(0.02)),
            "V": Spec((d, d), nearly_identity),
        }

    def check_member(self, name, part):
        if not isinstance(part, ActivationEdit) or part.reads or part.side != "exit":
            raise OptionError(
                f"{self.name}: the member {name!r} ({part.name}) is no edit of what a module returns. Give adaptations of `adapter` or `compacter`."
            )

    def edit(self, h, t, ctx):
        z = torch.stack([member(h) - h for member in t.members], -2)  # (..., members, out)
        query, keys = F.linear(h, t.Q, t.Q_bias), F.linear(z, t.K)
        weights = (keys @ query.unsqueeze(-1)).squeeze(-1).softmax(-1)
        ctx.note(NOTE, (t.members[0].at.site.name, weights))
        return h + F.linear((weights.unsqueeze(-1) * z).sum(-2), t.V)

    def loss(self, run, batch):
        task = run.objective.loss(run, batch)
        return task + self.pull * sum(_distance(at.t(None).V) for at in run.main.at())

    def phases(self):
        return (Phase("fuse", objective=self.loss),)


def _distance(v):
    """||V - I||^2."""
    return (v - torch.eye(len(v), device=v.device)).square().sum()
