"""A prompt that is held near a text of your choice (Khashabi et al. 2022, "Prompt Waywardness: The Curious Case of Discretized Interpretation of Continuous Prompts", S091).

loss = task loss + gamma / L sum_i |P_i - e(t_i)|^2    P: (L, width), t: `ids`, L token ids, e: the model's input embedding
trained: length * width
Not an identity at step 0; not a weight change: it cannot merge. Its projection is each vector's nearest row of the embedding
(`luthier prompts words`). gamma=0 or no ids: prompt_tuning. `luthier instruments waywardness` walks through gammas and texts.

Differs: the start is drawn from the vocabulary (the public code starts at the text; start=vocabulary start.ids=... does so), and
AdamW has this row's rate (there: Adam, 0.01).
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from luthier.errors import OptionError
from luthier.host.part import Phase, method
from luthier.methods.prompts.prompt_tuning import PromptTuning


def distance(prompt: Tensor, rows: Tensor) -> Tensor:
    """Mean over tokens of the squared distance. prompt, rows: (length, width)."""
    return (prompt - rows).square().sum(-1).mean()


@method("near_text", targets="embedding", rate=1e-1)
class NearText(PromptTuning):
    ids: tuple[NonNegativeInt, ...] = ()  # token ids of the text, one per prompt token
    gamma: NonNegativeFloat = 0.01  # weight of the distance to the text

    def check(self, sites) -> None:
        if self.ids and len(self.ids) != self.length:
            raise OptionError(
                f"near_text: ids names {len(self.ids)} tokens and the prompt has {self.length}. Set length={len(self.ids)}."
            )
        for s in sites:
            if self.ids and (s.role != "embedding" or max(self.ids) >= s.in_features):
                raise OptionError(
                    f"near_text: ids={max(self.ids)} is no row of {s.name}. Give token ids of this model."
                )

    def loss(self, run, batch):
        task = run.objective.mean(run.adapted(batch), batch)
        if not self.ids or not self.gamma:
            return task
        at = run.main.at()[0]
        table = run.adapted.base.get_submodule(at.site.path).weight.detach()
        rows = table[torch.tensor(self.ids, device=table.device)].float()
        return task + self.gamma * distance(at.t(None).P, rows)

    def phases(self):
        return (Phase("train", objective=self.loss),)
