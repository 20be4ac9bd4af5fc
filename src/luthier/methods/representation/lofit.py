"""LoFiT: offsets of a few attention heads that are found first (Yin et al. 2024, "LoFiT: Localized Fine-tuning on LLM Representations", S061).

z <- (1 + A) * z + v    z: (heads, head_dim), what the heads return before the projection that closes the attention
Plan: localise: A of every head trains with an L1 penalty; the heads with the largest ||A||_2 in the whole model stay. Tune: their v
alone trains, A is 0 again. A: (heads, head_dim)  v: (kept, head_dim)
trained: kept * head_dim per site (in the first phase of all heads; together `keep` of them in the second)
Step 0 is the base (A = 0, v = 0). Merging scales the columns of the closing projection and adds W v to its bias, which is made where there is
none.

Differs: A and v start at zero instead of N(0, 1e-3), so that step 0 is exact; the second phase's rate is the method's, the first one's
a share of it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from luthier.errors import ModelError
from luthier.host.applicable import Reason, because
from luthier.host.functional import rowwise
from luthier.host.part import Phase, Spec, method, zeros
from luthier.host.places import WeightEdit
from luthier.selection.chosen import checked
from luthier.signals.optimisers import adamw


def wide(values: Tensor, kept: list[int], width: int) -> Tensor:
    """(..., kept, head_dim) -> (..., width): zero in every other head."""
    heads = width // values.shape[-1]
    out = values.new_zeros(*values.shape[:-2], heads, values.shape[-1])
    return out.index_copy(-2, torch.tensor(kept, device=values.device), values).flatten(-2)


@method("lofit", targets="*attention.output", rate=1e-2, identity_start=True)
class LoFiT(WeightEdit):
    keep: Annotated[float, Field(gt=0, le=1)] = (
        0.1  # share of all heads whose offsets train, at least one; 0.03 in the paper's 7B models
    )
    penalty: NonNegativeFloat = 1e-3  # on the sum of |A| in the first phase
    localise_rate: PositiveFloat = 0.3  # rate of the first phase, as a share of the second's
    localise_share: Annotated[float, Field(gt=0, lt=1)] = 0.5  # share of the steps that finds the heads

    def check(self, sites):
        for s in sites:
            if not s.heads:
                raise because(
                    ModelError(
                        f"{self.name}: the width of a head is not known at {s.name}. Choose another method for this model."
                    ),
                    Reason.NO_HEAD_WIDTH,
                )

    def layout(self, site):
        return {"kept": list(range(site.heads)), "scales": True}

    def tensors(self, site, layout):
        kept = checked(layout["kept"], site.heads, f"{self.name}: heads of {site.name}")
        name = "A" if layout["scales"] else "v"
        return {name: Spec((len(kept), site.head_dim), zeros)} if kept else {}

    def delta(self, weight, t):
        if "A" not in t:
            return torch.zeros_like(weight)
        return weight * wide(t.A, t.layout["kept"], weight.shape[1])

    def delta_bias(self, weight, bias, t):
        return weight @ wide(t.v, t.layout["kept"], weight.shape[1]) if "v" in t else None

    def before(self, x, t):
        if "A" in t:
            x = x * (1 + rowwise(wide(t.A, t.layout["kept"], x.shape[-1]), x))
        if "v" in t:
            x = x + rowwise(wide(t.v, t.layout["kept"], x.shape[-1]), x)
        return x

    def penalised(self, run, batch):
        """The task's loss and the penalty on A."""
        size = sum(at.t(None).A.abs().sum() for at in run.main.at())
        return run.objective.loss(run, batch) + self.penalty * size

    def slower(self, named, run):
        """AdamW at the first phase's share of the rate; an output head keeps its own."""
        return adamw(named, run, factors={r"\.parts\.0\.": self.localise_rate})

    def choose(self, run):
        """Keep the heads whose scales went furthest, over all layers; their offsets begin at zero."""
        ats = run.main.at()
        norms = {
            (i, head): float(norm)
            for i, at in enumerate(ats)
            for head, norm in enumerate(at.t(None).A.detach().norm(dim=-1))
        }
        count = max(1, round(self.keep * len(norms)))
        best = set(sorted(norms, key=lambda head: (-norms[head], head))[:count])
        self.offsets_at(
            run, {at.site.name: [h for j, h in sorted(best) if j == i] for i, at in enumerate(ats)}
        )

    @staticmethod
    def offsets_at(run, kept):
        """Offsets of zero at these heads, {site: rising numbers}, in the place of whatever there was."""
        layouts = {"0": {name: {"kept": heads, "scales": False} for name, heads in kept.items()}}
        run.main.reform(
            layouts, lambda placed, site, specs: {k: torch.zeros(s.shape) for k, s in specs.items()}
        )

    def phases(self):
        first = self.localise_share
        return (
            Phase(
                "localise", share=first, objective=self.penalised, optimiser=self.slower, leave=self.choose
            ),
            Phase("tune", share=1 - first),
        )
