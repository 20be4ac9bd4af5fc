"""CPT: demonstrations in front of the input as embeddings that train within a small ball (Blau et al. 2024, "Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods", S247).

[E(demonstrations) + S; E(x)]    S: (moved tokens, width), zero at the start, of input and format tokens; answers stay as they are
loss = loss(example) + sum_j gamma^j CE(answer of the demonstration j back)    after every step |S_i| <= radius * sqrt(width / 2048)
trained: moved * width
Not an identity at step 0: it is in-context learning with these demonstrations. Not a weight change: it cannot merge.

A demonstration is a training row as the model's preprocessing writes input and answer; begin tokens and the separator are format,
an end token belongs to the answer. The projection follows every step, the last included.
Differs: AdamW; the public code projects before the next forward only, and divides the loss by the number of answer tokens. The
context's own loss is of the language head's linear map of what the last block says.
"""

from __future__ import annotations

from itertools import groupby
from typing import cast

import torch
from pydantic import NonNegativeFloat
from torch.nn import functional as F

from luthier.errors import OptionError
from luthier.host.part import Phase, Spec, Start, method, zeros
from luthier.host.places import TokenPrompt
from luthier.starts.demonstrations import INPUT, Demonstrations, laid_out


@method("cpt", targets="embedding", rate=1e-3)
class CPT(TokenPrompt):
    gamma: NonNegativeFloat = (
        0.95  # weight of the answer j demonstrations back is gamma^j; 1: no decay; 0: none counts
    )
    input_radius: NonNegativeFloat = 0.1  # how far an input token may move, times sqrt(width / 2048)
    format_radius: NonNegativeFloat = 0.1  # how far a token of the format may move, times sqrt(width / 2048)
    start: Start = Demonstrations()  # which rows, and how many

    speaks = True

    def check(self, sites):
        if not isinstance(self.start, Demonstrations):
            raise OptionError(
                f"cpt begins with demonstrations, not with start={self.start.name}. Use prompt_tuning."
            )

    def layout(self, site):
        return laid_out([], [INPUT] * cast(Demonstrations, self.start).shots)  # outside a fit

    def tensors(self, site, layout):
        if layout != laid_out(layout["ids"], layout["kinds"]):
            raise OptionError("cpt: the layout's `moved` are not the tokens that its `kinds` let move.")
        return {
            "E": Spec((len(layout["kinds"]), site.out_features), trained=False),
            "S": Spec((len(layout["moved"]), site.out_features), zeros),
        }

    def tokens(self, t, ctx):
        return t.E.index_add(-2, torch.tensor(t.layout["moved"], device=t.E.device), t.S)

    def radii(self, kinds, width):
        """(moved,) how far each moved token may go."""
        own = [self.input_radius if k == INPUT else self.format_radius for k in kinds if k <= 0]
        return torch.tensor(own) * (width / 2048) ** 0.5

    @torch.no_grad()
    def project(self, run):
        """Back into each token's ball."""
        at = run.main.at()[0]
        shift = at.values["S"]
        far = self.radii(at.layout["kinds"], shift.shape[1]).to(shift)
        shift.mul_((far / shift.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)[:, None])

    def objective(self, run, batch):
        out = run.adapted(batch)
        loss = run.objective.mean(out, batch)
        layout = run.main.at()[0].layout
        if not self.gamma or max(layout["kinds"]) < 1:
            return loss
        logits = run.adapted.base.get_output_embeddings()(out.notes["prompt"][0][:1])  # alike in all rows
        return loss + context_loss(logits[0], layout["ids"], layout["kinds"], self.gamma)

    def phases(self):
        return (Phase("train", objective=self.objective, every={1: self.project}),)


def context_loss(logits, ids, kinds, gamma):
    """sum_j gamma^j times the mean -log p over the tokens of the answer j back. logits: (tokens, vocabulary), of the next token."""
    total = logits.new_zeros((), dtype=torch.float32)
    for back, run in groupby(range(len(kinds)), key=kinds.__getitem__):
        if back > 0:
            where = list(run)
            wanted = torch.tensor([ids[i] for i in where], device=logits.device)
            said = logits[[i - 1 for i in where]].float()
            total = total + gamma**back * F.cross_entropy(said, wanted)
    return total
