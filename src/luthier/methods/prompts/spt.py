"""SPT: a soft prompt with a trained scale ("Scaled Prompt-Tuning for Few-Shot Natural Language Generation", 2023, S298).

[s * P; E(x)]    P: (length, width)  s: (width,), 1 at the start    trained: (length + 1) * row per site
inner: before that block too the prompt's positions are replaced by scaled tokens of its own (intermediate SPT).
Not an identity at step 0; not a weight change: it cannot merge. `luthier.sources.settle` writes s * P as an ordinary prompt.

Differs: the paper's abstract does not fix the scale's shape; it is one number for each hidden dimension (source.over=token: for each
token). The inner prompt stands besides the one at the input, not instead of it. AdamW at the rate of this row.
"""

from __future__ import annotations

from pydantic import NonNegativeInt

from luthier.errors import OptionError
from luthier.host.part import Source, Start, method
from luthier.methods.prompts.deep_prompt import DeepPrompt
from luthier.sources.scaled import Scaled
from luthier.starts.vocabulary import Vocabulary


@method("spt", targets="embedding", rate=1e-1)
class SPT(DeepPrompt):
    source: Source = Scaled()  # the scale
    start: Start = Vocabulary()  # rows of the vocabulary, or chosen ones
    inner: NonNegativeInt = 0  # block whose prompt positions get tokens of their own; 0: only the input

    def sites(self, structure, name=None):
        found = super().sites(structure, name)
        if name is not None:
            return found
        later = [s for s in found[1:] if s.layer == self.inner]
        if self.inner and not later:
            raise OptionError(
                f"spt: inner={self.inner}, and the last block of {structure.model} is {found[-1].layer}. Choose 1 to {found[-1].layer}, or 0 for none."
            )
        return [*found[:1], *later]
