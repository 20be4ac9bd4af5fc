"""LoRA+: B learns faster than A (Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models").

dW = (alpha / rank) B A    A: (rank, in)  B: (out, rank)    trained: rank * (in + out) per site
B's learning rate is `ratio` times the run's, which is A's. Step 0 is the base (B = 0). Merging adds dW to the weight.

Differs: the paper finds its ratio by a small sweep for each model and task; 16 is where its public code starts.
"""

from __future__ import annotations

from functools import partial

from pydantic import PositiveFloat

from luthier.errors import OptionError
from luthier.host.part import Phase, method
from luthier.methods.low_rank.lora import LoRA
from luthier.signals.optimisers import adamw


@method("lora_plus", rate=5e-4)
class LoRAPlus(LoRA):
    ratio: PositiveFloat = 16.0  # learning rate of B over that of A

    def check(self, sites):
        super().check(sites)
        if self.optimiser != "adamw":
            raise OptionError(
                f"lora_plus sets AdamW's rates: optimiser={self.optimiser!r} has no use for them. Choose method lora."
            )

    def phases(self):
        return (Phase("train", optimiser=partial(adamw, factors={r"\.values\.B$": self.ratio})),)
