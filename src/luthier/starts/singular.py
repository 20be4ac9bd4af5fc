"""Starts from a weight's own singular components: the largest (PiSSA) or the smallest (SoMA, S246), as factors of a low-rank update.

W = U S V^T    gain * B A = U_r S_r V_r^T,  B = U_r (S_r / gain)^(1/2): (out, rank),  A = (S_r / gain)^(1/2) V_r^T: (rank, in)
Anchored: the host subtracts the start's own product, so that step 0 is the base and what trains is the component itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import Spec, Start, register


def factors_of(
    weight: Tensor, rank: int, largest: bool, metric: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(B, A) with B A the `rank` largest or smallest components of W, in double; metric: C, (in, in), regular and symmetric: of W C,
    taken back by C^-1."""
    w = weight.double()
    u, s, vh = torch.linalg.svd(w if metric is None else w @ metric, full_matrices=False)
    kept = slice(0, rank) if largest else slice(len(s) - rank, len(s))
    b, a = u[:, kept] * s[kept].sqrt(), s[kept].sqrt()[:, None] * vh[kept]
    return b, a if metric is None else torch.linalg.solve(metric, a, left=False)


def rank_of(specs: Mapping[str, Spec], weight: Tensor | None, name: str) -> int:
    """The rank that is asked for. OptionError where what is wanted is no pair of factors of this weight."""
    shapes = {k: tuple(s.shape) for k, s in specs.items()}
    if weight is not None and weight.dim() == 2 and set(shapes) == {"A", "B"}:
        rank = shapes["A"][0]
        if shapes == {"A": (rank, weight.shape[1]), "B": (weight.shape[0], rank)}:
            return rank
    raise OptionError(
        f"start {name!r} fills low-rank factors A and B of a weight, not {', '.join(sorted(shapes))}. Choose a low-rank method, e.g. lora, or another start."
    )


class Components(Start):
    """Factors of some of a weight's components."""

    anchored = True

    def components(
        self,
        specs: Mapping[str, Spec],
        weight: Tensor | None,
        gain: float,
        largest: bool,
        metric: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """A and B such that gain * B A is the asked rank's largest or smallest components."""
        rank = rank_of(specs, weight, self.name)
        if not gain:
            raise OptionError(f"start {self.name!r} can't begin with components times 0. Raise alpha.")
        assert weight is not None
        b, a = factors_of(weight, rank, largest, metric)
        return {"A": (gain**-0.5 * a).float(), "B": (gain**-0.5 * b).float()}


@register("pissa")
class PiSSAStart(Components):
    def fill(self, site, specs, weight, statistics, rng):
        return self.components(specs, weight, statistics["gain"], True)


@register("soma")
class SoMAStart(Components):
    def fill(self, site, specs, weight, statistics, rng):
        return self.components(specs, weight, statistics["gain"], False)
