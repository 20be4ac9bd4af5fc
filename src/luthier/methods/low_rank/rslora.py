"""rsLoRA: LoRA whose scale falls with the root of the rank (Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning
with LoRA").

dW = (alpha / sqrt(rank)) B A    A: (rank, in)  B: (out, rank)    trained: rank * (in + out) per site
Under alpha / rank what an update learns shrinks as the rank grows; under alpha / sqrt(rank) neither it nor its gradients depend on the
rank. Step 0 is the base (B = 0). Merging adds dW to the weight.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat

from luthier.host.part import method
from luthier.methods.low_rank.lora import LoRA


@method("rslora", rate=1e-3)
class RsLoRA(LoRA):
    alpha: NonNegativeFloat = 8.0  # the update is scaled by alpha / sqrt(rank)

    def gain(self):
        return self.alpha / self.rank**0.5
