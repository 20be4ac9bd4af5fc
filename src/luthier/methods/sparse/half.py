"""Half Fine-Tuning: in each stage a random half of every block's matrices trains (Hui et al. 2024, "HFT: Half Fine-Tuning", S068).

Of each block's attention matrices and of its feed-forward matrices a random half trains, by kind; the others keep the last
stage's values, and the next stage draws again. Where a kind has an odd number, blocks and stages alternate.
W: (out, in) for each matrix that has trained so far    trained: in * out per matrix of the stage's half
Step 0 is the base; merging writes the values. fraction=1 is full tuning of the blocks' matrices.

Differs: embeddings and norms stay frozen (the paper's page leaves them open); a file holds what ever trained.
"""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field, PositiveInt

from luthier.host.adaptation import site_parameters
from luthier.host.part import Phase, Spec, Start, method
from luthier.host.places import Subset
from luthier.methods.sparse.parameters import Pretrained

KINDS = ("attention.", "cross_attention.", "mlp.")


@method("half_fine_tuning", targets="*attention.* | mlp.*", rate=5e-5, decay=0.01, identity_start=True)
class HalfFineTuning(Subset):
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5  # share of the matrices that trains in a stage
    stages: PositiveInt = 2  # how often the half is drawn
    start: Start = Pretrained()

    def sites(self, structure, name=None):
        return [
            s
            for s in super().sites(structure, name)
            if s.rows is None and any(n == "weight" for n, _ in s.parameters)
        ]

    def layout(self, site):
        return {"kept": False, "trains": False}

    def tensors(self, site, layout):
        shape = dict(site.parameters)["weight"]
        return {"weight": Spec(shape, trained=layout["trains"])} if layout["kept"] else {}

    def values(self, parameters, t):
        return t

    def draw(self, run):
        """Choose this stage's half; what trained before keeps its values."""
        ats, stage = run.main.at(), run.index
        layouts: dict[str, dict] = {}
        rng = random.Random(f"{run.seed} {run.index}")
        for tower, layer in sorted({(a.site.tower, a.site.layer) for a in ats}):
            for kind in KINDS:
                here = [
                    a
                    for a in ats
                    if (a.site.tower, a.site.layer) == (tower, layer) and a.site.role.startswith(kind)
                ]
                share = self.fraction * len(here)
                count = int(share) + int(share % 1 > 0 and (layer + stage) % 2)
                chosen = rng.sample(here, count)
                layouts |= {
                    a.site.name: {"kept": a in chosen or a.layout["kept"], "trains": a in chosen}
                    for a in here
                }
        old = {a.site.name: v.detach() for a in ats for v in a.values.values()}
        base = run.adapted.base

        def fill(placed, site, specs):
            return {
                k: old[site.name] if site.name in old else site_parameters(base, site)["weight"].float()
                for k in specs
            }

        run.main.reform({"0": layouts}, fill)

    def phases(self):
        return tuple(Phase(f"stage {i + 1}", enter=self.draw) for i in range(self.stages))
