"""PERSOMA: a user's history as a few soft tokens (Hebert et al. 2024, "PERSOMA: PERsonalized SOft ProMpt Adapter Architecture for Personalized Language Prompting", S329).

[P(history); E(x)]    P: (length, width), made by an adapter from a vector of each item of the row's history (luthier.sources.history)
trained: as the adapter's, for the mlp (item_width + 1) * inner + (inner + 1) * width + item_width; with lora_rank also LoRA's
Not an identity at step 0; not a weight change: it cannot merge. Rows without a history read a learned vector in its place.

Each text is encoded once by a frozen sentence encoder; which items are read where there are too many is `source.sampler`. A
perceiver without positions does not see the items' order. The data's column of histories is named by --history.
Differs (the paper's training could not be verified): the embedded MiniLM instead of SentenceT5, not trained; the loss is the
task's; the mlp and the transformer are resampled by means over equal stretches of the history.
"""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from luthier.host.part import Source, method
from luthier.methods.low_rank.lora import LoRA
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.history import History


@method("persoma", targets="embedding", rate=3e-3)
class Persoma(PromptTuning):
    length: PositiveInt = 8  # soft tokens that a history becomes
    source: Source = History()  # the adapter, the sampler and the encoder of items
    lora_rank: NonNegativeInt = 0  # rank of LoRA in the model itself; 0: it is frozen

    def parts(self):
        return (self, LoRA(rank=self.lora_rank, alpha=2.0 * self.lora_rank)) if self.lora_rank else (self,)
