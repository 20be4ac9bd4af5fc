"""Semi-parametric prompt tuning: prompt tokens that each row fetches from a memory by its own instruction (Bari et al. 2022, "SPT: Semi-Parametric Prompt Tuning for Multitask Prompted Learning", S056).

[M_i1; ..; M_ik; P; E(x)]    M: (entries, width)  P: (length - k, width)    i: the k rows of M nearest to the mean of the instruction's embeddings
trained: as the source's, entries * width + (length - k) * width + width * width
Not an identity at step 0; not a weight change: it cannot merge. A batch may mix tasks. In generation the rows are fetched once,
from what was given; the answer and padding do not reach the query.

Differs (the paper leaves it open): a hard choice gives the query no gradient, so fetched rows are weighed by the softmax of
their scores, which also trains a query map; source.weighted=false trains the fetched rows alone, without a query map.
The model stays frozen. The memory begins, as the prompt does, with rows of the vocabulary. k=0 is prompt_tuning.
"""

from __future__ import annotations

from luthier.host.part import Source, method
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.retrieved import Retrieved


@method("retrieved_prompt", targets="embedding", rate=3e-2)
class RetrievedPrompt(PromptTuning):
    source: Source = Retrieved()  # the memory, and what is fetched from it
