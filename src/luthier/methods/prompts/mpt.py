"""MPT: a shared prompt times a rank-one matrix of the task (Wang et al. 2023, "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning", S070).

[P * (u v); E(x)]    P: (length, width), shared by tasks  u: (length, rank)  v: (rank, width), of this task
source.train_shared=False trains rank * (length + width) numbers for a task and leaves P alone.
Not an identity at step 0; not a weight change: it cannot merge. `luthier.sources.settle` writes P * (u v) as an ordinary prompt.

Differs: the factors start with product 1, P_k = P (source.initial=normal draws them as the public code does, and the first prompt is then
4e-4 of P); one rate for P and the factors; AdamW. A run trains one task: what it begins with comes from
several by mpt_group (`luthier prompts share` and `task`, then --after).
"""

from __future__ import annotations

from luthier.host.part import Source, method
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.rank_one import RankOne


@method("mpt", targets="embedding", rate=1e-1)
class MPT(PromptTuning):
    source: Source = RankOne()  # the task's factors
