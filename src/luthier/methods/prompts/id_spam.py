"""ID-SPAM: a prompt that self-attention makes from the input (Sinha et al. 2025, "Leveraging Self-Attention for Input-Dependent Soft Prompting in LLMs", S358).

[P(x); E(x)]    A = softmax(E Wq^T (E Wk^T)^T / sqrt(width)) E Wv^T,  P = reshape(Wu relu(Wd mean(A)))
Wq, Wk, Wv: (width, width)  Wd: (bottleneck, width)  Wu: (length * width, bottleneck)
trained: as the source's, 3 * width * width + bottleneck * width + length * width * bottleneck
Not an identity at step 0; not a weight change: it cannot merge. The mean is over the instruction's real tokens: padding and
the answer do not reach the prompt. In generation it is made once, from what was given, and then lives in the cache.

Differs: the prompt stands at the input, where its attention mask and positions are the host's; in front of an inner block,
which the paper often prefers, it is refused. No biases; weights are drawn so that variances are kept.
"""

from __future__ import annotations

from pydantic import PositiveInt

from luthier.errors import OptionError
from luthier.host.part import Source, method
from luthier.host.places import TokenPrompt
from luthier.sources.self_attention import SelfAttention


@method("id_spam", targets="embedding", rate=1e-3)
class IDSPAM(TokenPrompt):
    length: PositiveInt = 10  # prompt tokens
    source: Source = SelfAttention()  # what makes them from the input

    def tensors(self, site, layout):
        return {"P": (self.length, site.out_features)}

    def check(self, sites) -> None:
        if inner := [s.name for s in sites if s.layer]:
            raise OptionError(
                f"{self.name}: a prompt in front of an inner block ({inner[0]}) is not possible here. Leave targets={type(self).targets!r}."
            )

    def tokens(self, t, ctx):
        return t.P
