"""Residual prompt tuning: a soft prompt through a shallow net with a skip (Razdaibiedina et al. 2023, "Residual Prompt Tuning: Improving Prompt Tuning with Residual Reparameterization", S299).

[P + phi(P); E(x)]    P: (length, width), phi: down, ReLU, up, LayerNorm, shared by the tokens
Not an identity at step 0; not a weight change: it cannot merge. `luthier.sources.settle` writes P + phi(P) as an ordinary prompt.

Differs: AdamW without weight decay at the rate of this row, instead of 0.3 with decay 1e-5; LayerNorm's gain starts at the
standard deviation of the prompt instead of at 1 (source.gain=1), because embeddings are small beside unit variance.
"""

from __future__ import annotations

from luthier.host.part import Source, method
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.residual import Residual


@method("residual_prompt", targets="embedding", rate=3e-2)
class ResidualPrompt(PromptTuning):
    source: Source = Residual()  # the net
