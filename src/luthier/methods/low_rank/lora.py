"""LoRA: low-rank updates of linear weights (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").

dW = (alpha / rank) B A    A: (rank, in)  B: (out, rank)    trained: rank * (in + out) per site
Step 0 is the base (B = 0). Merging adds dW to the weight. Dropout, if any, acts on the update's input.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat

from luthier.host.part import method
from luthier.methods.low_rank.pair import LowRank


@method("lora", targets="*attention.query | *attention.value", rate=2e-3, identity_start=True)
class LoRA(LowRank):
    alpha: NonNegativeFloat = 16.0  # the update is scaled by alpha / rank

    def gain(self):
        return self.alpha / self.rank
