"""IAPT: a few tokens at every block, made from the instruction as it stands there (Zhu et al. 2024, "IAPT: Instruction-Aware Prompt Tuning for Large Language Models", S284).

[P_0; E(x)], and before block l > 0 the prompt's positions are replaced by P_l    P_l = r_l(softmax(Q X^T / sqrt(inner)) X) Wu^T,  X = H_l Wd^T
H_l: (tokens, width), the instruction's hidden states as they enter block l; r_l: a rational function, started as GELU
trained: as the source's, 2 * inner * width + length * inner + 12 * sites
Not an identity at step 0; not a weight change: it cannot merge. Padding and the answer do not reach the prompts. In
generation they are made once, from what was given, and live in the cache: a token then costs what it costs the base.

Differs (the paper leaves it open): r = P/Q of degrees 6 and 5 with Q = 1 + |b_1 x + ... + b_5 x^5|; pooled by `length` learned
queries over the down-projected states; one generator for all blocks, or (source.share) for so many in a row.
"""

from __future__ import annotations

from pydantic import PositiveInt

from luthier.host.part import Source, method
from luthier.host.places import TokenPrompt
from luthier.methods.prompts.deep_prompt import every_block
from luthier.sources.pooled import Pooled


@method("iapt", targets="embedding", rate=3e-2)
class IAPT(TokenPrompt):
    length: PositiveInt = 4  # tokens at every block
    source: Source = Pooled()  # what makes them from the instruction

    deep = True

    def sites(self, structure, name=None):
        return every_block(super().sites(structure, name), structure, name)

    def tensors(self, site, layout):
        return {"P": (self.length, site.out_features)}

    def tokens(self, t, ctx):
        return t.P

    def tokens_at(self, h, t, ctx):
        return t.P
