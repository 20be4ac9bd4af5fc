"""A prompt that keeps its origin and the task's vector apart ("Task Prompt Vectors: Effective Initialization through Multi-Task Soft-Prompt Transfer", 2024, S351).

[P_0 + T; E(x)]    P_0: (length, width), where it began, not trained  T: (length, width), the task prompt vector
Not an identity at step 0; not a weight change: it cannot merge. `luthier.sources.settle` writes P_0 + T as an ordinary prompt.

The vectors T of several tasks add up, and stand on other origins: `luthier prompts combine`, `luthier.merging.prompt_vectors`.
Trained as prompt_tuning is, from the same start; that a file holds the origin too is all that it costs.

Differs: the origin is drawn from the whole vocabulary (the paper: its first 5,000 entries); AdamW without weight decay, at the
rate of this row (the paper: 0.3, decay 1e-5).
"""

from __future__ import annotations

from luthier.host.part import Source, method
from luthier.methods.prompts.prompt_tuning import PromptTuning
from luthier.sources.from_origin import FromOrigin


@method("task_prompt", targets="embedding", rate=1e-1)
class TaskPrompt(PromptTuning):
    source: Source = FromOrigin()  # the origin, and what is added to it
