"""LoRA-Pro: LoRA trained as if the whole weight were (Wang et al. 2024, "LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", S173).

dW = (alpha / rank) B A    A: (rank, in)  B: (out, rank)    trained: rank * (in + out) per site
The step of A and B is the one whose change of the weight is nearest to AdamW's on the whole weight, of which low-rank gradients know
enough: `luthier.signals.lora_pro`. Any low-rank method takes it: optimiser=lora_pro. Its rate is full tuning's. Two moments as large as
the weight are kept for every site. Step 0 is the base (B = 0). Merging adds dW to the weight.
"""

from __future__ import annotations

from typing import Literal

from luthier.host.part import method
from luthier.methods.low_rank.lora import LoRA


@method("lora_pro", rate=2e-4)
class LoRAPro(LoRA):
    optimiser: Literal["adamw", "lora_pro"] = "lora_pro"  # adamw: as LoRA
