"""DPT: a soft prompt as a product of thin factors (Xiao et al. 2023, "Decomposed Prompt Tuning via Low-Rank Reparameterization", S369).

[A B; E(x)]    A: (length, rank)  B: (rank, width), both uniform in [-0.5, 0.5]    trained: rank * (length + width)
Not an identity at step 0; not a weight change: it cannot merge. `luthier.sources.settle` writes P = A B as an ordinary prompt.

Differs: AdamW without weight decay at the rate of this row, instead of 0.3 with decay 1e-5.
"""

from __future__ import annotations

from luthier.host.part import Source, method
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.low_rank import LowRank


@method("dpt", targets="embedding", rate=1e-1)
class DPT(PromptTuning):
    source: Source = LowRank(initial="random")  # the two factors
