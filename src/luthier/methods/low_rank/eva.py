"""EVA: LoRA along the directions in which a layer's inputs vary, with ranks where they explain most (Paischer et al. 2024, "One
Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation", S144).

dW = (alpha / rank) B A    A: (rank_l, in), top right-singular vectors of the centred inputs;  B: (out, rank_l), zero
trained: rank * (in + out) per site
The ranks of all sites sum to rank times the number of sites and lie between 0 and start.rho * rank; alpha / rank is the same
everywhere. Sites that get no rank are left out. Step 0 is the base (B = 0). Merging adds dW to the weight.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat

from luthier.host.part import Start, method
from luthier.methods.low_rank.lora import LoRA
from luthier.starts.eva import EVAStart


@method("eva", targets="projections", rate=2e-3)
class EVA(LoRA):
    alpha: NonNegativeFloat = 8.0  # the update is scaled by alpha / rank
    start: Start = EVAStart()
