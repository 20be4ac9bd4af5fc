"""SoMA: the minor singular components train, the early blocks stay (Yun et al. 2024, "SoMA: Singular Value Decomposed Minor Components
Adaptation for Domain Generalizable Representation Learning", S246).

W = U S V^T;  B = U_r S_r^(1/2),  A = S_r^(1/2) V_r^T of the r smallest;  weight: W + B A - B_0 A_0
A: (rank, in)  B: (out, rank)    trained: rank * (in + out) per site
The weight decay on A and B, which shrinks pretrained components, falls by a cosine from `decay` to `last_decay`. Step 0 is the base,
bitwise. Merging adds B A - B_0 A_0.

Differs: the frozen blocks are a share (a third, as 8 of 24). The paper's backbone learns at half the head's rate; here each has its own
(--rate, --head-rate).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Phase, Start, method
from luthier.methods.low_rank.pair import LowRank
from luthier.signals.optimisers import adamw
from luthier.starts.singular import SoMAStart


@method("soma", targets="projections", rate=5e-4, decay=0.05, identity_start=True)
class SoMA(LowRank):
    rank: PositiveInt = 16  # how many of the smallest components train
    start: Start = SoMAStart()
    frozen: Annotated[float, Field(ge=0, lt=1)] = (
        1 / 3
    )  # share of a tower's blocks, the first ones, that stay
    last_decay: NonNegativeFloat = 1e-5  # the weight decay at the end of training

    def sites(self, structure, name=None):
        first = {t.name: int(self.frozen * len(t.blocks) + 1e-9) for t in structure.towers}
        found = super().sites(structure, name)
        return [s for s in found if s.layer is None or s.layer >= first.get(s.tower, 0)]

    def check(self, sites):
        super().check(sites)
        if self.optimiser != "adamw":
            raise OptionError(
                f"soma anneals AdamW's decay, which optimiser={self.optimiser!r} has no place for. Choose lora with start=soma."
            )

    def phases(self):
        return (Phase("train", optimiser=partial(adamw, last_decay=self.last_decay)),)
