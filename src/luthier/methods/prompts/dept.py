"""DePT: a short soft prompt, and a low-rank shift of the input's embeddings for what it saves (Shi & Lipani 2024, "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning", S207).

[P; E(x) + c A B]    P: (length, width)  A: (max_positions, rank)  B: (rank, width), 0 at the start
The numbers of a plain prompt of `budget` tokens, in a shorter sequence: rank = (budget - length) * width // (max_positions + width).
trained: length * width + rank * (max_positions + width), as its two parts (prompt_tuning, embedding_shift) count them
Not an identity at step 0: the prompt. Not a weight change: it cannot merge.

A and B have a rate of their own, `shift_rate` times the prompt's, also where the run's rate is given. Differs: AdamW at the rates
of this row (0.1 and 0.005) instead of searching both; the shift follows positions without padding (see embedding_shift).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Method, Phase, Start, method
from luthier.methods.prompts.embedding_shift import EmbeddingShift
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.signals.optimisers import at_a_share
from luthier.starts.vocabulary import Vocabulary


@method("dept", rate=1e-1)
class DePT(Method):
    length: PositiveInt = 40  # prompt tokens
    budget: Annotated[int, Field(ge=5)] = 100  # tokens of the plain prompt whose numbers may train
    rank: NonNegativeInt = 0  # of the shift; 0: the largest that the budget allows
    alpha: PositiveFloat = 8.0  # the shift is scaled by alpha / sqrt(rank)
    max_positions: Annotated[int, Field(ge=16)] = 256  # the longest input
    shift_rate: PositiveFloat = 0.05  # learning rate of A and B, as a share of the prompt's
    start: Start = Vocabulary()  # of the prompt: rows of the vocabulary, or chosen ones

    def parts(self):
        if not self.rank and self.budget <= self.length:
            raise OptionError(
                f"dept: a prompt of {self.length} tokens leaves nothing of budget={self.budget} for the shift. Set length below {self.budget}, or a rank."
            )
        return (
            PromptTuning(length=self.length, start=self.start),
            EmbeddingShift(
                rank=self.rank,
                tokens=0 if self.rank else self.budget - self.length,
                alpha=self.alpha,
                max_positions=self.max_positions,
            ),
        )

    def phases(self):
        return (Phase("train", optimiser=self.adamw_at_two_rates),)

    def adamw_at_two_rates(self, named, run):
        """AdamW: the prompt at its own rate or the run's, A and B at `shift_rate` times that."""
        return at_a_share(named, run, part=1, share=self.shift_rate)
