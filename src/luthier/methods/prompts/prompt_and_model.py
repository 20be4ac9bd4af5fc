"""A soft prompt and the model's own parameters, trained together: what cross-lingual studies compare a prompt alone with (S300), and the base of MEET (S227).

[P; E(x)] under W    P: (length, width)  W: every parameter of the model that the loss reaches
trained: length * width + all
first: share of the steps in which the prompt trains alone and the model is frozen; then both train. A file holds both.
Not an identity at step 0: the prompt. Not a weight change alone: it cannot merge.

The model has a rate of its own: `model_rate` where the prompt trains at the rate of this row; another rate for the run scales both.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from luthier.host.part import Free, Method, Part, Phase, Source, Start, method
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.methods.sparse.parameters import Full
from luthier.signals.optimisers import at_a_share
from luthier.starts.vocabulary import Vocabulary

SECOND = 1
"""The number of the part that holds the model's parameters."""


@method("prompt_and_model", rate=1e-1)
class PromptAndModel(Method):
    length: PositiveInt = 20  # prompt tokens
    source: Source = Free()  # where the prompt's numbers come from
    start: Start = Vocabulary()  # rows of the vocabulary, or chosen ones
    first: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the steps in which the model is frozen
    model_rate: PositiveFloat = 5e-5  # learning rate of the model's parameters

    def control(self) -> Part:
        """What trains beside the model."""
        return PromptTuning(length=self.length, source=self.source, start=self.start)

    def parts(self):
        return self.control(), Full()

    def phases(self):
        alone = Phase("prompt alone", share=self.first, trains=rf"\.parts\.(?!{SECOND}\.)")
        both = Phase("both", share=1 - self.first, optimiser=self.adamw_at_two_rates)
        return (alone, both) if self.first else (both,)

    def adamw_at_two_rates(self, named, run):
        """AdamW: the prompt at its own rate or the run's, the model at `model_rate` in proportion."""
        return at_a_share(named, run, part=SECOND, share=self.model_rate / self.rate)
